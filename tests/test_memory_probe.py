"""The probe: two steps on the longest rows, after which nothing is other than before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from memory_material import stack
from model_batches import StepBatch, step_batch
from model_steps import LORA, fit, rows_of_step
from precision import STACKS, module
from precision import stack as compared
from torch import Tensor

from voxtrain.memory.probe import ProbeMemory, _give_out_again
from voxtrain.memory.stack import MemoryStack
from voxtrain.model.module import VoxModule
from voxtrain.model.tuning import FullTuning, LoraTuning

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]
TOLD = ("step", "loss_diff", "loss_stop", "grad_norm", "lr", "rows_seen")
PAGED = stack("24gb", state="paged_8bit", autocast=False)


def longest(step: int) -> StepBatch:
    """Rows that the run itself does not have."""
    return step_batch(step, [rows_of_step(70, 3), rows_of_step(71, 2)])


def steps(first: int, last: int) -> list[StepBatch]:
    return [step_batch(step, [rows_of_step(step, 4)[:2], rows_of_step(step, 4)[2:]]) for step in range(first, last + 1)]


def negative_zeros(made: VoxModule) -> None:
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.view(-1)[::7] = -0.0


def values(optimizer: torch.optim.Optimizer) -> list[object]:
    return [state[name] for state in optimizer.state.values() for name in sorted(state)]


@pytest.mark.parametrize(
    ("memory", "tuning"),
    [
        *(pytest.param(compared(name), FullTuning(), id=name) for name in STACKS),
        pytest.param(PAGED, FullTuning(), id="paged"),
        pytest.param(compared("8bit"), LORA, id="lora"),
    ],
)
def test_a_run_is_the_same_to_the_last_bit_with_the_probe_and_without(
    tiny_folder: Path, memory: MemoryStack, tuning: FullTuning | LoraTuning
) -> None:
    runs, told, drawn = [], [], []
    for probing in (False, True):
        made = module(tiny_folder, tuning, memory)
        negative_zeros(made)
        probe = ProbeMemory(longest, 0)
        torch.manual_seed(3)
        told.append(fit(made, steps(1, 3), *([probe] if probing else [])).reports)
        drawn.append(torch.rand(1).item())
        runs.append(made)
    assert probe.told is not None
    assert (probe.told["rows"], probe.under_way) == (5, False)
    assert set(probe.told["phases"]) == {
        "first_forward", "backward", "first_optimizer_step", "later_forward", "later_backward", "later_optimizer_step",
    }  # fmt: skip
    plain, probed = ([[getattr(report, name) for name in TOLD] for report in reports] for reports in told)
    assert plain == probed
    assert drawn[0] == drawn[1]
    mine, theirs = (run.learnt_tensors() for run in runs)
    assert all(torch.equal(bits(mine[name]), bits(theirs[name])) for name in mine)
    ours, others = (values(run.trainer.optimizers[0]) for run in runs)
    assert len(ours) == len(others) > 20
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours, others, strict=True))


def bits(tensor: Tensor) -> Tensor:
    """As whole numbers: -0.0 equals 0.0, and their bits do not."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def test_weights_counters_and_state_are_as_before_when_the_run_begins(tiny_folder: Path) -> None:
    made, seen = module(tiny_folder, FullTuning(), compared("fp32")), []
    before = {name: tensor.clone() for name, tensor in made.learnt_tensors().items()}
    probe = ProbeMemory(longest, 0)

    def at_start() -> None:
        optimizer = made.trainer.optimizers[0]
        seen.append((made.steps_done, made.rows_seen, list(made.skipped), len(optimizer.state), made.rule.lr))
        assert all(torch.equal(before[name], tensor) for name, tensor in made.learnt_tensors().items())
        assert [p for p in made.parameters() if p.grad is not None] == []

    made.on_train_start = at_start  # type: ignore[method-assign]  # after the callbacks'
    fit(made, steps(1, 1), probe)
    assert seen == [(0, 0, [], 0, 1e-4)]


def test_pages_are_given_out_again_cleared_and_only_once(tiny_folder: Path) -> None:
    made = module(tiny_folder, FullTuning(), PAGED)
    fit(made, steps(1, 1))
    optimizer = made.trainer.optimizers[0]
    parameter, state = max(optimizer.state.items(), key=lambda item: item[0].numel())
    first, second = state["state1"], state["state2"]
    assert bool(first.any())
    assert bool(second.any())
    _give_out_again(optimizer)
    again = [optimizer.get_state_buffer(parameter, dtype=torch.uint8) for _ in range(3)]  # type: ignore[attr-defined]
    assert [buffer.data_ptr() for buffer in again[:2]] == [first.data_ptr(), second.data_ptr()]
    assert again[2].data_ptr() not in {first.data_ptr(), second.data_ptr()}
    assert not any(bool(buffer.any()) for buffer in again)
