"""The memory plan: what it says of the full-size model, what it says to do, and honest about fitting.

What the trace under it counts is held against real allocations in test_memory_trace.py. A trace of the full-size model
takes seven seconds: tests of it are slow ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from memory_material import alike, architecture, stack

from voxtrain.manifest.row import Row
from voxtrain.memory.__main__ import main
from voxtrain.memory.longest import Length, Longest, assumed_longest, longest_of, longest_rows, row_length
from voxtrain.memory.plan import CLASSES, GIB, PARTS, PHASES, MemoryPlan, Work, fit_faults, predict
from voxtrain.memory.remedies import ADAPTERS, remedies, told
from voxtrain.memory.stack import MemoryStack

ARCHITECTURE = architecture()
SHALLOW = tuple(
    f"model.architecture.{key}=1"
    for key in (
        "lm_config.num_hidden_layers",
        "residual_lm_num_layers",
        "encoder_config.num_layers",
        "dit_config.num_layers",
    )
)
"""One layer in each transformer, at full width: to be quick."""


def work(lora: bool = False, rows: int = 1, layers: int | None = None) -> Work:
    longest = assumed_longest(ARCHITECTURE, 30.0, rows, 8, None)
    return Work(architecture(layers=layers), ADAPTERS if lora else None, longest)


def plan_of(memory: MemoryStack, lora: bool = False, rows: int = 1) -> MemoryPlan:
    return predict(work(lora, rows), memory, 0, memory.card_gib())


@pytest.mark.slow
class TestArithmetic:
    """facts.md, section 1: memory before activations, GiB."""

    def test_fp32_adamw_full(self) -> None:
        step = plan_of(stack("80gb")).phases["first_optimizer_step"]
        held = [step[name] for name in ("weights", "gradients", "optimizer_on_card")]
        assert [round(gib, 2) for gib in held] == [8.53, 8.53, 17.06]
        assert round(sum(held), 1) == 34.1

    def test_published_stack(self) -> None:
        plan = plan_of(stack("24gb"))
        assert round(plan.phases["first_optimizer_step"]["optimizer_on_card"], 2) == 4.33  # 2.03 bytes a parameter
        assert plan.phases["backward"]["optimizer_on_card"] == 0.0
        assert (plan.phase, plan.optimizer_off_card) == ("first_optimizer_step", 0.0)

    def test_paged_state_is_off_the_card_in_backward(self) -> None:
        lora = plan_of(stack("24gb"), lora=True)
        assert lora.phase in ("backward", "later_backward")
        assert lora.classes["optimizer_on_card"] == 0.0
        assert lora.optimizer_off_card == pytest.approx(565_248 * 32 * 2.03125 / GIB, rel=1e-3)

    def test_lora(self) -> None:
        plan = plan_of(stack("80gb"), lora=True)
        assert round(plan.classes["gradients"], 2) == 0.07
        assert round(plan.classes["optimizer_on_card"], 2) == 0.13
        assert round(plan.classes["weights"], 2) == round(8.53 + 0.07, 2)
        assert 3.4 < plan.classes["autocast_copies"] < 4.0  # without checkpointing every layer keeps its copy

    def test_lora_on_a_bf16_base(self) -> None:
        plan = plan_of(stack("24gb"), lora=True)
        held = [plan.classes[name] for name in ("weights", "gradients")]
        assert held == pytest.approx([4.265 + 0.067, 0.067], abs=1e-3)
        assert plan.optimizer_off_card == pytest.approx(0.0342, abs=1e-4)
        assert plan.classes["autocast_copies"] < 0.01  # of the adapters alone
        on_fp32 = plan_of(stack("24gb", frozen="fp32"), lora=True)
        assert 4.2 < on_fp32.peak_gib - plan.peak_gib < 5.5  # a copy of the weights, and copies of what is computed

    def test_bf16_weights_with_8bit_state(self) -> None:
        plan = plan_of(stack("16gb"))
        step = plan.phases["first_optimizer_step"]
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
        step = plan.phases["first_optimizer_step"]
        assert step["optimizer_on_card"] == pytest.approx(on_card * 2_290_004_544 / GIB, rel=1e-3)
        assert plan.optimizer_off_card == pytest.approx(off_card * 2_290_004_544 / GIB, rel=1e-3)

    def test_classes_sum_to_the_peak_of_the_highest_phase(self) -> None:
        for memory in (stack("80gb"), stack("24gb"), stack("24gb", state="8bit"), stack("cpu")):
            plan = plan_of(memory)
            assert list(plan.classes) == list(CLASSES)
            assert sum(plan.classes.values()) == plan.peak_gib
            assert plan.peak_gib == max(sum(phase.values()) for phase in plan.phases.values())


@pytest.mark.slow
class TestFitting:
    def test_vanilla_full_sft_does_not_fit_24_gb_and_says_why(self) -> None:
        memory = stack("80gb", card="24gb")
        plan = plan_of(memory)
        assert not plan.fits
        [fault] = fit_faults(plan, memory, lambda: told(remedies(work(), memory, plan, 2)))
        assert fault.where == "memory.card = 24gb"
        for part in ("weights 8.53", "gradients 8.53", "optimizer_on_card 17.06", "24.00 GiB"):
            assert part in fault.what
        assert "memory.state=paged_8bit" in fault.remedy
        assert "memory=16gb with memory.card=24gb" in fault.remedy
        assert fit_faults(plan, memory.model_copy(update={"force": True}), lambda: "") == []

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
        assert assumed_longest(ARCHITECTURE, 30.0, 1, 8, None) == alike(1, 310, 188, 8)

    def test_cut_by_positions(self) -> None:
        rows = [Length(100, 60, 60), Length(90, 50, 50), Length(50, 30, 30), Length(40, 20, 20)]
        assert longest_of(rows, 2, None) == Longest((rows[0], rows[1]), 2)
        assert longest_of(rows, 2, 320) == Longest((rows[0], rows[1], rows[2]), 2)
        assert longest_of(rows, 2, 90) == Longest((rows[0],), 4)

    def test_the_heaviest_micro_batch_need_not_hold_the_longest_row(self) -> None:
        rows = [Length(100, 10, 10), Length(60, 50, 50), Length(55, 50, 50)]
        assert longest_of(rows, 2, 120) == Longest((rows[1], rows[2]), 2)

    def test_a_row_is_counted_from_above(self) -> None:
        assert row_length(ARCHITECTURE, 1.0, 6, None) == (7 + 6 + 2, 7, 7)  # 6.25 positions a second
        assert row_length(ARCHITECTURE, 1.0, 6, 2.0) == (7 + 13 + 6 + 4, 7 + 13, 7)

    def test_only_texts_that_may_be_longest_are_tokenized(self) -> None:
        rows = [_row(2.0, "a" * 40), _row(2.0, "b" * 30), _row(2.0, "c" * 20), _row(2.0, "d" * 4)]
        asked: list[str] = []

        def tokens(text: str) -> int:
            asked.append(text[0])
            return 5 if text[0] == "a" else len(text)

        found = longest_rows(ARCHITECTURE, rows, tokens, 2)
        assert [length.positions for length in found] == [13 + 30 + 2, 13 + 20 + 2]
        assert asked == ["a", "b", "c"]
        from_above = longest_rows(ARCHITECTURE, rows, None, 2)
        assert [length.positions for length in from_above] == [13 + 41 + 2, 13 + 31 + 2]


def _row(seconds: float, text: str) -> Row:
    return Row(text, "/a.wav", text, 1, "g", seconds, None, None, None)


class TestDoor:
    @pytest.mark.slow
    def test_json_alone_on_stdout(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=full_sft_24gb", "--json", "--card", "3090"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert set(said) >= {
            "peak_gib", "card_gib", "reserve_gib", "fits", "phase", "classes", "optimizer_off_card", "disk_gib",
        }  # fmt: skip
        assert said["card_gib"] == 24564 / 1024
        assert said["fits"] is True
        assert sum(said["classes"].values()) == pytest.approx(said["peak_gib"], abs=1e-9)
        assert list(said["phases"]) == list(PHASES)
        for phase, classes in said["phases"].items():
            parts = said["parts"][phase]
            for name, of in PARTS.items():
                assert sum(parts[part] for part in of) == pytest.approx(classes[name], abs=1e-9)
        assert 50 < said["disk"]["at_rest_gib"] < 58  # ten numbered checkpoints of 4.27 GiB and a state

    @pytest.mark.slow
    def test_the_16gb_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=full_sft_16gb", "--json"]) == 0
        by_recipe = json.loads(capsys.readouterr().out)
        assert main(["+recipe=full_sft_24gb", "memory=16gb", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["classes"] == by_recipe["classes"]
        assert by_recipe["card_gib"] == 16.0
        assert by_recipe["fits"] is True
        assert 10 * 4.27 + 8.5 < by_recipe["disk"]["at_rest_gib"] < 10 * 4.27 + 8.7  # ten checkpoints and a state

    @pytest.mark.slow
    def test_the_12gb_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=full_sft_12gb", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["card_gib"] == 12.0
        assert said["fits"] is True
        assert said["peak_gib"] < 8
        assert said["classes"]["optimizer_on_card"] == 0.0
        assert said["host_gib"] == pytest.approx((2.032 + 4 + 4) * 2_290_004_544 / GIB, rel=1e-3)

    @pytest.mark.slow
    def test_what_does_not_fit_is_told_and_exits_0(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=full_sft_80gb", "--card", "24gb"]) == 0
        said = capsys.readouterr().out
        assert "Does not fit a card of 24.00 GiB" in said
        assert "To make it fit" in said

    @pytest.mark.slow
    def test_the_demo_needs_no_card(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["+recipe=demo"]) == 0
        assert "No card to fit" in capsys.readouterr().out

    @pytest.mark.slow
    def test_the_durations_of_a_manifest_are_used(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        row = {"audio": "a.wav", "text": "hi", "parent": "p", "duration": 2.0}
        lines = [json.dumps({**row, "id": str(n), "duration": seconds}) for n, seconds in enumerate((2.0, 4.0, 99.0))]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        assert main(["+recipe=lora_24gb", f"data.manifest={tmp_path}/rows.jsonl", *SHALLOW, "--json"]) == 0
        longest = json.loads(capsys.readouterr().out)["longest"]
        assert longest["audio_positions"] == 25  # 4 s: the row of 99 s is over clean.max_seconds
