"""Gradients that leave for the host: accumulated, clipped and used as if they had stayed, and none left behind."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from memory_material import stack
from model_batches import StepBatch, step_batch
from model_steps import TUNINGS, Collect, fit, rows_of_step
from precision import module
from pydantic import ValidationError

from voxtrain.fault import InputError
from voxtrain.memory.stack import MemoryStack
from voxtrain.model.module import VoxModule
from voxtrain.model.tuning import FullTuning, LoraTuning
from voxtrain.optim import host_gradients
from voxtrain.optim.adamw import AdamW
from voxtrain.optim.host_gradients import HostGradients, _Journey
from voxtrain.optim.narrow_adamw import NarrowAdamW
from voxtrain.settings import compose

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
EXACT = {"weights": "fp32", "frozen": "fp32", "rounding": "nearest", "autocast": False}


def steps(count: int, cut: int) -> list[StepBatch]:
    """Steps of four rows in micro-batches of `cut`."""
    made = []
    for step in range(1, count + 1):
        rows = rows_of_step(step, 4)
        made.append(step_batch(step, [rows[at : at + cut] for at in range(0, 4, cut)]))
    return made


def trained(
    folder: Path, tuning: FullTuning | LoraTuning, memory: MemoryStack, batches: list[StepBatch], clip_at: float
) -> tuple[VoxModule, Collect]:
    made = module(folder, tuning, memory)
    made.max_grad_norm = clip_at
    return made, fit(made, batches)


def assert_equal(mine: tuple[VoxModule, Collect], theirs: tuple[VoxModule, Collect]) -> None:
    for report, other in zip(mine[1].reports, theirs[1].reports, strict=True):
        assert (report.grad_norm, report.loss_total) == (other.grad_norm, other.loss_total)
    tensors, others = mine[0].learnt_tensors(), theirs[0].learnt_tensors()
    assert len(tensors) > 20
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.slow
@TUNINGS
def test_fp32_weights_learn_bit_for_bit_what_they_learn_with_gradients_on_the_card(
    tiny_folder: Path, tuning: FullTuning | LoraTuning
) -> None:
    """Against the plain stack: torch's AdamW, autograd's sums over four micro-batches, clipped in every step."""
    plain = trained(tiny_folder, tuning, stack("cpu"), steps(3, 1), clip_at=0.05)
    host = trained(tiny_folder, tuning, stack("12gb", state="host", **EXACT), steps(3, 1), clip_at=0.05)
    assert all(report.grad_norm > 0.05 for report in plain[1].reports)
    assert_equal(host, plain)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["host", "host_8bit"])
def test_bf16_weights_too_where_there_is_nothing_to_add_up(tiny_folder: Path, state: str) -> None:
    """Unclipped: the card would round what it clips to bf16 again, and the host does not."""
    host, card = (
        trained(tiny_folder, FullTuning(), stack("12gb", state=state, gradients=where), steps(3, 4), clip_at=0.0)
        for where in ("host", "card")
    )
    for mine, theirs in zip(host[1].reports, card[1].reports, strict=True):
        assert mine.loss_total == theirs.loss_total
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)  # squares are added in another order
    tensors, others = host[0].learnt_tensors(), card[0].learnt_tensors()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


@pytest.mark.slow
def test_sums_of_bf16_gradients_are_better_on_the_host(tiny_folder: Path) -> None:
    """The card adds in bf16 and rounds each time; the host adds in fp32: nearly the same, and no worse."""
    norms = {
        name: trained(tiny_folder, FullTuning(), memory, steps(1, cut), clip_at=0.0)[1].reports[0].grad_norm
        for name, memory, cut in (
            ("host", stack("12gb"), 1),
            ("card", stack("12gb", gradients="card"), 1),
            ("exact", stack("12gb", gradients="card"), 4),
        )
    }
    assert norms["host"] == pytest.approx(norms["card"], rel=0.005)  # bf16: 8 bits of significand
    assert abs(norms["host"] - norms["exact"]) < 0.005 * norms["exact"]


def test_no_gradient_stays_and_sums_are_of_one_step() -> None:
    weight, unused = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))
    gradients = HostGradients([weight, unused])
    for _ in range(2):
        (2 * weight).sum().backward()
        assert weight.grad is None
    assert torch.equal(gradients.of(weight), torch.full((3, 2), 4.0))  # type: ignore[arg-type]
    assert gradients.of(unused) is None
    gradients.clear()
    assert gradients.of(weight) is None
    (3 * weight).sum().backward()
    assert torch.equal(gradients.of(weight), torch.full((3, 2), 3.0))  # type: ignore[arg-type]


def test_zero_grad_forgets_what_is_on_the_host() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    rule = AdamW(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    optimizer = rule.build([weight], "host", "nearest", 0, "host")
    assert isinstance(optimizer, NarrowAdamW)
    weight.sum().backward()
    optimizer.step()
    after = weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step()
    assert not torch.equal(after, torch.ones(3, 2))
    assert torch.equal(weight, after)


class TestRefusals:
    @pytest.mark.parametrize("change", [{"state": "fp32"}, {"state": "8bit"}, {"state": "paged_8bit"}])
    def test_gradients_on_the_host_need_their_master_there(self, change: dict[str, str]) -> None:
        with pytest.raises(ValidationError, match=r"gradients=host with memory\.state=.*; say memory\.state=host_8bit"):
            stack("12gb", weights="fp32", **change)
        with pytest.raises(ValueError, match="need their master there"):
            AdamW(lr=1e-5, betas=(0.9, 0.99), eps=1e-8, weight_decay=0).build([], change["state"], "nearest", 0, "host")

    @pytest.mark.slow
    def test_several_gpus(self) -> None:
        given = ["+recipe=full_sft_12gb", "data.manifest=none", "trainer=ddp", "trainer.devices=2"]
        with pytest.raises(
            InputError, match=r"trainer\.devices > 1 with memory\.gradients = host[\s\S]*trainer\.devices=1"
        ):
            compose(given)
        assert compose([*given, "memory.gradients=card"]).memory.gradients == "card"


class TestJourney:
    """The way from a card, with a stream that copies at once: pieces, order, patience and faults are the same."""

    @pytest.fixture(autouse=True)
    def no_card(self, monkeypatch: pytest.MonkeyPatch) -> list[threading.Event]:
        pieces = [torch.empty(64, dtype=torch.uint8) for _ in range(2)]
        self.gate = threading.Event()
        self.gate.set()
        event = SimpleNamespace(record=lambda stream: None, synchronize=self.gate.wait)
        monkeypatch.setattr(host_gradients, "PIECE_BYTES", 64)
        monkeypatch.setattr(host_gradients, "_pinned", lambda: pieces)
        monkeypatch.setattr(host_gradients, "_copying", lambda device: SimpleNamespace(wait_stream=lambda other: None))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "Event", lambda: event)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_gradient_of_many_pieces_arrives_whole(self, dtype: torch.dtype) -> None:
        gradient, target = torch.arange(333.0).to(dtype), torch.full((333,), 7.0)
        journey = _Journey(torch.device("cpu"))
        journey.send(gradient, target, first=True)
        journey.send(gradient, target, first=False)
        journey.end()
        assert torch.equal(target, 2 * gradient.float())

    def test_a_hook_waits_for_a_free_piece(self) -> None:
        self.gate.clear()
        journey, target = _Journey(torch.device("cpu")), torch.empty(48)
        sender = threading.Thread(
            target=journey.send, args=(torch.ones(48), target, True)
        )  # three pieces, two are free
        sender.start()
        time.sleep(0.05)
        assert sender.is_alive()
        self.gate.set()
        sender.join(5)
        assert not sender.is_alive()
        journey.end()
        assert torch.equal(target, torch.ones(48))

    def test_a_fault_on_the_way_is_told_at_the_end(self) -> None:
        journey = _Journey(torch.device("cpu"))
        journey.send(torch.ones(4), torch.ones(4, dtype=torch.int32), first=False)  # floats cannot be added to it
        with pytest.raises(RuntimeError, match="can't be cast"):
            journey.end()
