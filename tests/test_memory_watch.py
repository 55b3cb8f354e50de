"""The receipt: measured classes beside predicted ones, and memory.json that is there from the first step on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from learner import WIDTH, Learner, fit, optimizer_of
from memory_material import alike, architecture, stack

from voxtrain.durable import read_json
from voxtrain.memory.phases import PhasePeaks
from voxtrain.memory.plan import GIB, PHASES, MemoryPlan, Work, predict
from voxtrain.memory.stack import MemoryStack
from voxtrain.memory.watch import WatchMemory, _phases, optimizer_gib, reset_peak, resident_gib, resident_peak_gib
from voxtrain.run_folder import RunFolder

CONF = Path(__file__).parents[1] / "conf"
VALUES = WIDTH * WIDTH + WIDTH
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def plan() -> MemoryPlan:
    architecture: dict[str, Any] = yaml.safe_load((CONF / "model" / "tiny.yaml").read_text())["architecture"]
    values = yaml.safe_load((CONF / "memory" / "cpu.yaml").read_text())
    values.pop("_target_")
    return predict(Work(architecture, None, alike(2, 20, 10, 4)), MemoryStack.model_validate(values), 0, None)


@pytest.mark.slow
def test_classes_are_counted_exactly_and_stand_beside_the_prediction(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    fit(Learner(3), WatchMemory(run, plan()))
    said = read_json(run.memory)
    classes = said["measured"]["classes"]
    assert classes["weights"] == 4 * VALUES / GIB
    assert classes["gradients"] == 4 * VALUES / GIB
    assert classes["optimizer_on_card"] == (8 * VALUES + 2 * 4) / GIB  # two moments, and a counter for each tensor
    assert said["measured"]["optimizer_off_card"] == 0.0
    assert said["measured"]["peak_gib"] > 0.05  # Python and torch are resident
    assert said["predicted"]["peak_gib"] == plan().peak_gib
    assert said["error"]["weights"] == plan().classes["weights"] / classes["weights"] - 1
    assert set(said["error"]) == {"weights", "gradients", "optimizer"}


@pytest.mark.slow
def test_phases_are_measured_in_their_order_beside_the_prediction(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    fit(Learner(3), WatchMemory(run, plan()))
    phases = read_json(run.memory)["phases"]
    assert set(phases) == {*PHASES, "later_optimizer_step"}
    assert all(0.05 < phase["measured"] < 64 for phase in phases.values())
    assert phases["backward"]["predicted"] == sum(plan().phases["backward"].values())  # on the CPU all is allocated
    assert phases["later_optimizer_step"]["predicted"] is None
    assert {phase["error"] for phase in phases.values()} == {None}  # a process holds Python too


@pytest.mark.slow
def test_on_a_card_each_phase_has_the_allocators_peak_and_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator is played: it holds 1 GiB more in every phase, and each peak is forgotten with its phase."""
    device, seen = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: (len(seen) + 1) * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 9 * GIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", seen.append)
    peaks = PhasePeaks(device)
    for phase in ("first_forward", "backward", "first_forward"):
        peaks.ends(phase)
    assert peaks.gib == {"first_forward": 4.0, "backward": 3.0}
    assert (peaks.allocated_gib, peaks.reserved_gib) == (4.0, 9.0)
    assert seen == [device] * 4
    planned = predict(Work(architecture("tiny"), None, alike(1, 20, 10, 1)), stack("24gb"), 0, 24.0)
    told = _phases(planned, {"first_optimizer_step": 0.5}, paged=True)["first_optimizer_step"]
    held = planned.phases["first_optimizer_step"]
    assert told["predicted"] == pytest.approx(
        held["weights"] + held["gradients"] + planned.parts["first_optimizer_step"]["tables"], abs=1e-9
    )
    assert told["predicted"] is not None
    assert told["error"] == told["predicted"] / 0.5 - 1


@pytest.mark.slow
def test_it_is_written_after_the_first_step_and_leaves_no_hook(tmp_path: Path) -> None:
    run, module, seen = RunFolder(tmp_path), Learner(4), []
    module.at_step = lambda step: seen.append(run.memory.exists())
    fit(module, WatchMemory(run, plan()))
    assert seen == [False, True, True, True]
    assert not any(parameter._post_accumulate_grad_hooks for parameter in module.parameters())


@pytest.mark.slow
def test_no_hook_stays_after_a_step_that_broke(tmp_path: Path) -> None:
    module = Learner(4)

    def breaks(step: int) -> None:
        raise RuntimeError("broken")

    module.at_step = breaks
    with pytest.raises(RuntimeError, match="broken"):
        fit(module, WatchMemory(RunFolder(tmp_path), plan()))
    hooks = [hook for parameter in module.parameters() for hook in (parameter._post_accumulate_grad_hooks or {})]
    assert hooks == []


@pytest.mark.slow
def test_paged_state_is_counted_beside_the_allocator() -> None:
    module = Learner(1)
    optimizer = optimizer_of(module.parameters(), "8bit")
    module.layer(torch.ones(1, WIDTH)).sum().backward()
    optimizer.step()
    whole, nothing = optimizer_gib([optimizer], torch.device("cpu"))
    assert nothing == 0.0
    state = optimizer.state[module.layer.weight]
    state["state1"].is_paged = True
    here, paged = optimizer_gib([optimizer], torch.device("cpu"))
    assert paged == WIDTH * WIDTH / GIB
    assert here + paged == pytest.approx(whole, abs=1e-15)


def test_the_peak_can_be_forgotten_where_the_system_lets_it() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        pytest.skip(f"this system does not let the highest mark be forgotten: {error}")
    size_gib = 1 / 16  # more than the 32 MiB up to which glibc may keep what was freed
    reset_peak(torch.device("cpu"))
    held = torch.ones(2**24)  # touched
    high = resident_peak_gib()
    assert high >= resident_gib() - 0.01
    del held
    assert resident_peak_gib() > high - size_gib / 2
    reset_peak(torch.device("cpu"))
    assert resident_peak_gib() < high - size_gib / 2
