"""The memory plan: exact where it can be, near what was measured where it is an estimate, honest about fitting."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from voxtrain.memory.__main__ import main
from voxtrain.memory.activations import Longest, Numbers, activations
from voxtrain.memory.longest import assumed_longest, longest_of, row_positions
from voxtrain.memory.plan import CLASSES, GIB, MemoryPlan, Work, fit_faults, predict
from voxtrain.memory.remedies import ADAPTERS, remedies, told
from voxtrain.memory.stack import MemoryStack

CONF = Path(__file__).parents[1] / "conf"


def architecture() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / "model" / "voxcpm2.yaml").read_text())["architecture"]
    return values


def stack(name: str, **changes: Any) -> MemoryStack:
    values = yaml.safe_load((CONF / "memory" / f"{name}.yaml").read_text())
    values.pop("_target_")
    return MemoryStack.model_validate({**values, **changes})


def work(lora: bool = False, rows: int = 1) -> Work:
    return Work(architecture(), ADAPTERS if lora else None, assumed_longest(architecture(), 30.0, rows, 8, None))


def plan_of(memory: MemoryStack, lora: bool = False, rows: int = 1) -> MemoryPlan:
    return predict(work(lora, rows), memory, 0, memory.card_gib())


class TestArithmetic:
    """facts.md, section 1: memory before activations, GiB."""

    def test_fp32_adamw_full(self) -> None:
        step = plan_of(stack("80gb")).phases["optimizer_step"]
        held = [step[name] for name in ("weights", "gradients", "optimizer_on_card")]
        assert [round(gib, 2) for gib in held] == [8.53, 8.53, 17.06]
        assert round(sum(held), 1) == 34.1

    def test_published_stack(self) -> None:
        plan = plan_of(stack("24gb"))
        assert round(plan.phases["optimizer_step"]["optimizer_on_card"], 2) == 4.33  # 2.03 bytes a parameter
        assert plan.phases["backward"]["optimizer_on_card"] == 0.0
        assert (plan.phase, plan.optimizer_off_card) == ("optimizer_step", 0.0)

    def test_paged_state_is_off_the_card_in_backward(self) -> None:
        lora = plan_of(stack("24gb"), lora=True)
        assert lora.phase == "backward"
        assert lora.classes["optimizer_on_card"] == 0.0
        assert lora.optimizer_off_card == pytest.approx(565_248 * 32 * 2.03125 / GIB, rel=1e-3)

    def test_lora(self) -> None:
        plan = plan_of(stack("80gb"), lora=True)
        assert round(plan.classes["gradients"], 2) == 0.07
        assert round(plan.classes["optimizer_on_card"], 2) == 0.13
        assert round(plan.classes["weights"], 2) == round(8.53 + 0.07, 2)
        assert round(plan.classes["autocast_copies"], 1) == 4.0  # without checkpointing every layer keeps its copy

    def test_lora_on_a_bf16_base(self) -> None:
        plan = plan_of(stack("24gb"), lora=True)
        held = [plan.classes[name] for name in ("weights", "gradients")]
        assert held == pytest.approx([4.265 + 0.067, 0.067], abs=1e-3)
        assert plan.optimizer_off_card == pytest.approx(0.0342, abs=1e-4)
        assert plan.classes["autocast_copies"] == 0.0
        on_fp32 = plan_of(stack("24gb", frozen="fp32"), lora=True)
        assert 4.2 < on_fp32.peak_gib - plan.peak_gib < 5.5  # a copy of the weights, and copies of what is computed

    def test_bf16_weights_with_8bit_state(self) -> None:
        plan = plan_of(stack("16gb"))
        step = plan.phases["optimizer_step"]
        held = [step[name] for name in ("weights", "gradients", "optimizer_on_card")]
        assert [round(gib, 2) for gib in held] == [4.27, 4.27, 4.33]
        assert round(sum(held), 1) == 12.9
        assert plan.fits
        assert 1 < plan.spare_gib() < 2
        assert (plan.classes["autocast_copies"], plan.optimizer_off_card) == (0.0, 0.0)

    @pytest.mark.parametrize(
        ("changes", "on_card", "off_card"),
        [
            ({"state": "fp32"}, 8, 0),
            ({"state": "fp32", "rounding": "kahan"}, 10, 0),
            ({"rounding": "kahan"}, 4.0318, 0),
            ({"rounding": "nearest", "state": "host"}, 0, 12),
            ({"rounding": "nearest", "state": "host_8bit"}, 0, 6.0318),
        ],
    )
    def test_what_bf16_weights_keep_beside_them(self, changes: dict[str, Any], on_card: float, off_card: float) -> None:
        plan = plan_of(stack("16gb", card="80gb", **changes))
        step = plan.phases["optimizer_step"]
        assert step["optimizer_on_card"] == pytest.approx(on_card * 2_290_004_544 / GIB, rel=1e-3)
        assert plan.optimizer_off_card == pytest.approx(off_card * 2_290_004_544 / GIB, rel=1e-3)

    def test_classes_sum_to_the_peak_of_the_highest_phase(self) -> None:
        for memory in (stack("80gb"), stack("24gb"), stack("24gb", state="8bit"), stack("cpu")):
            plan = plan_of(memory)
            assert list(plan.classes) == list(CLASSES)
            assert sum(plan.classes.values()) == plan.peak_gib
            assert plan.peak_gib == max(sum(phase.values()) for phase in plan.phases.values())


class TestActivations:
    @pytest.mark.parametrize(
        ("positions", "checkpointed", "measured_gib"),
        [
            (100, False, 5.71),
            (800, False, 17.8),
            (2400, False, 45.4),
            (800, True, 1.46),
            (2400, True, 4.26),
        ],
    )
    def test_near_facts_measured_on_fake_tensors(self, positions: int, checkpointed: bool, measured_gib: float) -> None:
        """facts.md, section 7: upstream's forward, LocEnc and LocDiT everywhere; 4 %: the two constants are fitted."""
        found = activations(
            architecture(), Longest(1, positions, positions, positions, 1), numbers="autocast", recompute=checkpointed
        )
        assert (found.kept + found.passing + found.copies) / GIB == pytest.approx(measured_gib, rel=0.04)

    @pytest.mark.parametrize(("positions", "measured_gib"), [(800, 1.18), (2400, 3.53)])
    def test_bf16_weights_near_facts(self, positions: int, measured_gib: float) -> None:
        """facts.md, section 7, with checkpointing; 5 %: upstream's forward was measured, the constants fit ours."""
        longest = Longest(1, positions, positions, positions, 1)
        found = activations(architecture(), longest, numbers="bf16", recompute=True)
        assert (found.kept + found.passing) / GIB == pytest.approx(measured_gib, rel=0.05)
        assert found.copies == 0

    @pytest.mark.parametrize(
        ("layers", "text", "audio", "numbers", "recompute", "kept_mb"),
        [
            ((1, 1, 1, 1), 60, 60, "autocast", True, 66.666),
            ((3, 1, 1, 1), 180, 60, "autocast", True, 77.883),
            ((1, 3, 1, 1), 180, 60, "autocast", False, 697.001),
            ((1, 1, 3, 1), 60, 120, "autocast", False, 672.258),
            ((1, 1, 1, 3), 60, 120, "autocast", False, 777.055),
            ((3, 1, 1, 1), 60, 180, "fp32", False, 561.863),
            ((1, 1, 3, 1), 60, 120, "fp32", True, 54.997),
            ((1, 1, 1, 1), 60, 60, "bf16", True, 19.8),
            ((1, 1, 1, 1), 180, 60, "bf16", True, 26.5),
            ((1, 1, 1, 1), 60, 120, "bf16", True, 36.0),
            ((3, 1, 1, 1), 60, 60, "bf16", False, 131.3),
            ((1, 1, 3, 1), 60, 60, "bf16", False, 146.0),
            ((1, 1, 1, 3), 60, 60, "bf16", False, 194.0),
        ],
    )
    def test_what_forward_keeps_is_what_our_loss_kept(
        self,
        layers: tuple[int, ...],
        text: int,
        audio: int,
        numbers: Numbers,
        recompute: bool,
        kept_mb: float,
    ) -> None:
        """Live bytes of model/loss.py after forward, counted on a CPU at full width; 1 %."""
        arch = copy.deepcopy(architecture())
        arch["lm_config"]["num_hidden_layers"], arch["residual_lm_num_layers"] = layers[0], layers[1]
        arch["encoder_config"]["num_layers"], arch["dit_config"]["num_layers"] = layers[2], layers[3]
        longest = Longest(1, text + audio + 2, audio, audio, 1)
        found = activations(arch, longest, numbers=numbers, recompute=recompute)
        in_backward = _copies_of_one_layer(arch) if numbers == "autocast" and recompute else 0
        assert (found.kept + found.copies - in_backward) / 1e6 == pytest.approx(kept_mb, rel=0.01)

    @given(rows=st.integers(1, 8), positions=st.integers(3, 400), share=st.floats(0.1, 0.9))
    def test_more_rows_never_take_less(self, rows: int, positions: int, share: float) -> None:
        audio = max(1, int(positions * share))
        for recompute in (True, False):
            one, more = (
                activations(
                    ARCHITECTURE,
                    longest_of([(positions, audio)] * 8, n, None),
                    numbers="autocast",
                    recompute=recompute,
                )
                for n in (rows, rows + 1)
            )
            assert one.kept <= more.kept
            assert one.copies + one.passing <= more.copies + more.passing


ARCHITECTURE = architecture()


def _copies_of_one_layer(arch: dict[str, Any]) -> int:
    """bf16 copies of the layer that backward computes again: forward holds none of them."""
    none = Longest(1, 0, 0, 0, 1)
    full = activations(arch, none, numbers="autocast", recompute=True).copies
    return full - 2 * (20_986_368 + 2 * 1024 * 1024)


class TestFitting:
    def test_vanilla_full_sft_does_not_fit_24_gb_and_says_why(self) -> None:
        memory = stack("80gb", card="24gb")
        plan = plan_of(memory)
        assert not plan.fits
        [fault] = fit_faults(plan, memory, told(remedies(work(), memory, plan, 2)))
        assert fault.where == "memory.card = 24gb"
        for part in ("weights 8.53", "gradients 8.53", "optimizer_on_card 17.06", "24.00 GiB"):
            assert part in fault.what
        assert "memory.state=paged_8bit" in fault.remedy
        assert "memory=16gb with memory.card=24gb" in fault.remedy
        assert fit_faults(plan, memory.model_copy(update={"force": True}), "") == []

    def test_the_published_stack_fits_a_4090_narrowly_and_no_l4(self) -> None:
        on_4090, on_l4 = plan_of(stack("24gb", card="4090")), plan_of(stack("24gb", card="l4"))
        assert on_4090.fits
        assert 0 < on_4090.spare_gib() < 2
        assert not on_l4.fits

    def test_lora_fits_24_and_16_gb(self) -> None:
        assert plan_of(stack("24gb"), lora=True).spare_gib() > 10
        assert plan_of(stack("24gb", card="16gb"), lora=True).fits

    def test_plain_full_sft_fits_80_gb(self) -> None:
        assert plan_of(stack("80gb")).fits

    def test_without_a_card_there_is_nothing_to_fit(self) -> None:
        plan = plan_of(stack("cpu"))
        assert plan.fits
        assert plan.card_gib is None
        assert (plan.reserve_gib, plan.classes["context"]) == (0.0, 0.0)
        json.dumps(plan.to_json(), allow_nan=False)

    def test_remedies_are_worth_what_the_plan_says(self) -> None:
        memory = stack("80gb", card="24gb")
        plan = plan_of(memory)
        found = remedies(work(), memory, plan, 2)
        assert len(found) == 2
        assert all(remedy.fits and remedy.peak_gib <= 23.5 for remedy in found)
        assert all(remedy.saves_gib == plan.peak_gib - remedy.peak_gib for remedy in found)
        lean = plan_of(stack("80gb", card="24gb", activation_checkpointing=True, state="paged_8bit"))
        assert lean.peak_gib in [remedy.peak_gib for remedy in found]

    def test_rows_of_a_large_batch_can_go_one_by_one(self) -> None:
        memory = stack("24gb", card="24gb", activation_checkpointing=False)
        found = remedies(work(rows=8), memory, plan_of(memory, rows=8), 9)
        assert any(remedy.setting == "memory.max_positions=310" for remedy in found)

    def test_the_16gb_stack_is_told_as_it_is(self) -> None:
        memory = stack("24gb", card="16gb")
        found = {remedy.setting: remedy for remedy in remedies(work(), memory, plan_of(memory), 9)}
        assert found["memory=16gb"].peak_gib == plan_of(stack("16gb")).peak_gib
        assert found["memory=16gb"].fits
        assert "tuning=lora" in found

    def test_remedies_of_bf16_weights_can_be_taken(self) -> None:
        memory = stack("16gb", card="12gb")
        found = [remedy.setting for remedy in remedies(work(), memory, plan_of(memory), 9)]
        assert "memory.state=host with memory.rounding=nearest" in found
        assert not any("paged" in setting for setting in found)

    def test_lora_can_have_a_bf16_base(self) -> None:
        memory = stack("24gb", card="12gb", frozen="fp32")
        found = [remedy.setting for remedy in remedies(work(lora=True), memory, plan_of(memory, lora=True), 9)]
        assert "memory.frozen=bf16" in found

    def test_no_remedy_is_no_change(self) -> None:
        memory = stack("24gb", card="12gb")
        for remedy in remedies(work(), memory, plan_of(memory), 9):
            assert "paged_8bit" not in remedy.setting
            assert "activation_checkpointing" not in remedy.setting


class TestLongest:
    def test_thirty_seconds(self) -> None:
        assert assumed_longest(ARCHITECTURE, 30.0, 1, 8, None) == Longest(1, 310, 188, 188, 8)

    def test_cut_by_positions(self) -> None:
        rows = [(100, 60), (90, 50), (50, 30), (40, 20)]
        assert longest_of(rows, 2, None) == Longest(2, 200, 110, 110, 2)
        assert longest_of(rows, 2, 320) == Longest(3, 300, 140, 140, 2)
        assert longest_of(rows, 2, 90) == Longest(1, 100, 60, 60, 4)

    def test_a_row_is_counted_from_above(self) -> None:
        positions, audio = row_positions(ARCHITECTURE, 1.0, "hello")
        assert audio == 7  # 6.25 a second
        assert positions == 7 + 6 + 2


class TestDoor:
    def test_json_alone_on_stdout(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=full_sft_24gb", "--json", "--card", "3090"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert set(said) >= {
            "peak_gib", "card_gib", "reserve_gib", "fits", "phase", "classes", "optimizer_off_card", "disk_gib",
        }  # fmt: skip
        assert said["card_gib"] == 24564 / 1024
        assert said["fits"] is True
        assert sum(said["classes"].values()) == pytest.approx(said["peak_gib"], abs=1e-9)
        assert 50 < said["disk"]["at_rest_gib"] < 58  # ten numbered checkpoints of 4.27 GiB and a state

    def test_the_16gb_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=full_sft_16gb", "--json"]) == 0
        by_recipe = json.loads(capsys.readouterr().out)
        assert main(["+recipe=full_sft_24gb", "memory=16gb", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["classes"] == by_recipe["classes"]
        assert by_recipe["card_gib"] == 16.0
        assert by_recipe["fits"] is True
        assert 10 * 4.27 + 8.5 < by_recipe["disk"]["at_rest_gib"] < 10 * 4.27 + 8.7  # ten checkpoints and a state

    def test_what_does_not_fit_is_told_and_exits_0(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=full_sft_80gb", "--card", "24gb"]) == 0
        said = capsys.readouterr().out
        assert "Does not fit a card of 24.00 GiB" in said
        assert "To make it fit" in said

    def test_the_demo_needs_no_card(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=demo"]) == 0
        assert "No card to fit" in capsys.readouterr().out

    def test_the_durations_of_a_manifest_are_used(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        row = {"audio": "a.wav", "text": "hi", "parent": "p", "duration": 2.0}
        lines = [json.dumps({**row, "id": str(n), "duration": seconds}) for n, seconds in enumerate((2.0, 4.0, 99.0))]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        assert main(["+recipe=lora_24gb", f"data.manifest={tmp_path}/rows.jsonl", "--json"]) == 0
        longest = json.loads(capsys.readouterr().out)["longest"]
        assert longest["audio_positions"] == 25  # 4 s: the row of 99 s is over clean.max_seconds
