"""Out of memory, explained: a simulated one in each phase, with figures, remedies and the way on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_material import alike, architecture, stack
from model_batches import micro_batch, one_row, step_batch
from model_steps import fit, module, rows_of_step
from torch import nn

from voxtrain.fault import RunFailed
from voxtrain.memory.autopsy import Held, autopsy, held, phase_of
from voxtrain.memory.plan import Work, predict
from voxtrain.model.loss import position_losses
from voxtrain.model.tuning import FullTuning
from voxtrain.run_folder import RunFolder


class Greedy(torch.autograd.Function):
    """Runs out of memory in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")


class GreedyState(torch.optim.SGD):
    """Runs out of memory when its state is made, as Adam's is by its first step."""

    def _init_group(self, *given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def forward() -> None:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(_out_of_memory)
    layer(torch.ones(1, 2))


def _out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def backward() -> None:
    Greedy.apply(torch.ones(1, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]


def optimizer_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    weight.sum().backward()
    GreedyState([weight], lr=0.1).step()


FAILING = {"forward": forward, "backward": backward, "optimizer_step": optimizer_step}


def caught(phase: str) -> torch.OutOfMemoryError:
    with pytest.raises(torch.OutOfMemoryError) as error:
        FAILING[phase]()
    return error.value


def explain(phase: str, run: RunFolder, steps_done: int, first_step: int, *, probing: bool = False) -> RunFailed:
    plan = predict(Work(architecture("tiny"), None, alike(1, 310, 188, 8)), stack("24gb"), 0, 24.0)
    classes = {"weights": 8.5, "gradients": 8.5, "optimizer state": 0.0, "activations and the rest": 3.5}
    now = Held(allocated_gib=20.5, reserved_gib=22.0, card_gib=23.7, classes=classes, others=((71, 1.0), (72, 0.5)))
    return autopsy(
        caught(phase),
        plan=plan,
        now=now,
        steps_done=steps_done,
        first_step=first_step,
        run=run,
        remedies="tuning=lora",
        at_work=micro_batch([one_row(0, text=5, audio=9), one_row(1, text=3, audio=4)]),
        probing=probing,
    )


@pytest.mark.parametrize("phase", list(FAILING))
def test_the_phase_is_read_off_the_frames(phase: str) -> None:
    assert phase_of(caught(phase)) == phase


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "steps_done", "told"),
    [
        ("forward", 0, "step 1, in the first forward pass: activations"),
        ("backward", 0, "step 1, in the first backward pass"),
        ("optimizer_step", 0, "step 1, in the first optimizer step: the optimizer's state is made there"),
        ("forward", 7, "step 8, in a later forward pass"),
        ("backward", 7, "step 8, in a later backward pass: optimizer state stands"),
        ("optimizer_step", 7, "step 8, in a later optimizer step"),
    ],
)
def test_each_phase_has_its_page(tmp_path: Path, phase: str, steps_done: int, told: str) -> None:
    page = str(explain(phase, RunFolder(tmp_path), steps_done, first_step=0))
    assert told in page
    assert "20.50 GiB in tensors, 1.50 GiB in gaps" in page
    assert "1.50 GiB by other processes (process 71: 1.00, process 72: 0.50), of 23.70 GiB" in page
    assert "The tensors: weights 8.50, gradients 8.50, activations and the rest 3.50." in page
    assert "row0 (" in page
    assert "; padded to 2 x " in page
    assert "Predicted: 0.5" in page
    assert "tuning=lora" in page
    assert "No state was saved yet" in page
    assert "Tried to allocate 2.00 GiB" in page
    assert "More lines" not in page


@pytest.mark.slow
def test_the_first_step_of_a_sitting_counts_as_the_first(tmp_path: Path) -> None:
    """A resumed run makes its optimizer state before the first step, but its activations for the first time."""
    run = RunFolder(tmp_path)
    run.state(40).mkdir(parents=True)
    page = str(explain("forward", run, steps_done=40, first_step=40))
    assert "step 41, in the first forward pass" in page
    assert "The state of step 40 is saved" in page
    assert f"resume={run.root}" in page


@pytest.mark.slow
def test_the_probe_is_told_as_such(tmp_path: Path) -> None:
    page = str(explain("backward", RunFolder(tmp_path), 0, first_step=0, probing=True))
    assert page.startswith("Out of memory in the probe, before the first step, in the first backward pass")


@pytest.mark.slow
def test_a_module_knows_what_went_through_it(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*given: Any, **more: Any) -> Any:
        losses = position_losses(*given, **more)
        return replace(losses, diff=Greedy.apply(losses.diff))  # type: ignore[no-untyped-call]

    learner = module(tiny_folder, FullTuning())
    rows = rows_of_step(1, 2)
    step = step_batch(1, [rows[:1], rows[1:]])
    monkeypatch.setattr("voxtrain.model.module.position_losses", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        fit(learner, [step])
    assert learner.at_work is step.micro_batches[0]
    now = held(learner, [])
    assert now.classes["weights"] == pytest.approx(sum(weight.nbytes for weight in learner.parameters()) / 2**30)
    assert now.classes["gradients"] == 0.0
    assert now.others == ()
    weight = next(learner.parameters())
    weight.grad = torch.zeros_like(weight).index_fill_(0, torch.tensor([1]), 1.0).to_sparse(1)  # as an embedding's
    assert held(learner, []).classes["gradients"] == pytest.approx(weight[0].nbytes / 2**30)
