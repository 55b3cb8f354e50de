"""Every memory stack trains the model: resumed bit for bit, its bytes as planned, its loss that of fp32."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from memory_material import alike
from model_batches import StepBatch, micro_batch, step_batch
from model_steps import LORA, fit, rows_of_step
from precision import (
    CPU,
    DTYPES,
    STACKS,
    batches,
    learn,
    loaded,
    module,
    optimizer_of,
    plain_bf16,
    stack,
    validation_loss,
)
from safetensors.torch import save_file
from torch import Tensor

from voxtrain.checkpoint.resume import load_state
from voxtrain.checkpoint.snapshot import write_state
from voxtrain.memory.plan import GIB, Work, predict
from voxtrain.memory.watch import optimizer_gib
from voxtrain.model.loss import position_losses
from voxtrain.model.tuning import FullTuning
from voxtrain.model.upstream import VoxCPM2Model, adapters, load_model
from voxtrain.optim.narrow_adamw import NarrowAdamW
from voxtrain.optim.norm import gradient_norm
from voxtrain.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
KINDS = [pytest.param(name, marks=() if name in ("stochastic_8bit", "kahan") else pytest.mark.slow) for name in STACKS]
TOLD = ("loss_diff", "loss_stop", "grad_norm")


def steps(first: int, last: int) -> list[StepBatch]:
    return [step_batch(step, [rows_of_step(step, 4)[:2], rows_of_step(step, 4)[2:]]) for step in range(first, last + 1)]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    whole = module(tiny_folder, FullTuning(), stack(name))
    expected = fit(whole, steps(1, 4)).reports
    part = module(tiny_folder, FullTuning(), stack(name))
    fit(part, steps(1, 2))
    run = RunFolder(tmp_path)
    write_state(run, part, part.trainer.optimizers[0], "f")
    fresh = module(tiny_folder, FullTuning(), stack(name))
    optimizer = fresh.configure_optimizers()
    load_state(run, fresh, optimizer)
    fresh.configure_optimizers = lambda: optimizer  # type: ignore[method-assign]
    torch.manual_seed(99)
    found = fit(fresh, steps(3, 4)).reports
    assert [[getattr(r, key) for key in TOLD] for r in found] == [
        [getattr(r, key) for key in TOLD] for r in expected[2:]
    ]
    ours, theirs = fresh.learnt_tensors(), whole.learnt_tensors()
    assert {tensor.dtype for tensor in ours.values()} == {DTYPES[stack(name).weights]}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", [name for name in STACKS if name not in ("fp32", "8bit")])
def test_settings_take_every_stack_that_is_compared(name: str) -> None:
    held = stack(name)
    assert (held.weights, held.autocast) == ("bf16", True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [kind for kind in KINDS if kind.values != ("12gb",)])
def test_bytes_are_those_of_the_plan(tiny, tiny_folder: Path, name: str) -> None:
    """Weights and gradients exactly, state within 10 %: many of the tiny model's tensors keep fp32 moments."""
    trained = module(tiny_folder, FullTuning(), stack(name))
    seen: list[int] = []
    for parameter in trained.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.nbytes))
    fit(trained, [step_batch(1, [rows_of_step(1, 2)])])
    plan = predict(Work(tiny.architecture, None, alike(2, 20, 10, 2)), stack(name), 0, None)
    step = plan.phases["first_optimizer_step"]
    assert sum(p.nbytes for p in trained.parameters()) / GIB == pytest.approx(
        step["weights"], rel=0.02
    )  # the plan has blocks of 512 bytes
    assert sum(seen) / GIB == pytest.approx(step["gradients"], rel=0.02)
    state = sum(optimizer_gib(trained.trainer.optimizers, CPU))
    assert state == pytest.approx(plan.optimizer_off_card + step["optimizer_on_card"], rel=0.1)


@pytest.mark.slow
def test_bytes_are_those_of_the_plan_where_gradients_leave(tiny, tiny_folder: Path) -> None:
    """On the card weights and never a gradient; on the host the sums, and a master with 8-bit moments, to the byte."""
    trained = module(tiny_folder, FullTuning(), stack("12gb"))
    fit(trained, [step_batch(1, [rows_of_step(1, 2)])])
    plan = predict(Work(tiny.architecture, None, alike(2, 20, 10, 2)), stack("12gb"), 0, 12.0)
    learning = list(trained.parameters())
    assert [p for p in learning if p.grad is not None] == []
    step = plan.phases["first_optimizer_step"]
    assert sum(p.nbytes for p in learning) / GIB == pytest.approx(step["weights"], rel=0.02)  # blocks of 512 bytes
    assert step["gradients"] == step["optimizer_on_card"] == 0.0
    rule = trained.trainer.optimizers[0]
    assert isinstance(rule, NarrowAdamW)
    assert rule.host_gradients is not None
    sums = sum(tensor.nbytes for tensor in rule.host_gradients._sums.values())
    state = sum(value.nbytes for each in rule.state.values() for value in each.values() if isinstance(value, Tensor))
    tables = {v.data_ptr(): v.nbytes for each in rule.state.values() for k, v in each.items() if k.startswith("qmap")}
    assert sums == 4 * sum(p.numel() for p in learning)
    assert (state - sum(tables.values()) + sums) / GIB == pytest.approx(plan.host_gib, rel=1e-9)


def test_checkpointing_changes_nothing_in_bf16(tiny_folder: Path) -> None:
    batch = micro_batch(rows_of_step(1, 3))
    found = []
    for recompute in (False, True):
        model = loaded(tiny_folder, FullTuning(), stack("stochastic"))
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            losses = position_losses(model, batch, activation_checkpointing=recompute)
        (losses.diff.mean() + losses.stop.mean()).backward()
        found.append((losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (kept, gradients), (again, others) = found
    assert torch.equal(kept.diff, again.diff)
    assert torch.equal(kept.stop, again.stop)
    assert len(gradients) > 100
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


@pytest.mark.slow
def test_gradients_of_eight_micro_batches_add_up_in_bf16(tiny_folder: Path) -> None:
    """The loss in precision is that of rounding once to bf16, and no more than twice of it: fp32 sums are not worth it.

    Held against the same micro-batches added up in fp32 (`grad_dtype`), so that only the adding differs.
    """
    parts = [micro_batch([row]) for row in rows_of_step(1, 8)]
    found: list[dict[str, torch.Tensor]] = []
    for dtype in (torch.float32, torch.bfloat16):
        model = loaded(tiny_folder, FullTuning(), stack("stochastic"))
        for parameter in model.parameters():
            parameter.grad_dtype = dtype
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                losses = position_losses(model, part, activation_checkpointing=False)
            ((losses.diff.mean() + losses.stop.mean()) / 8).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    exact, added = found
    assert {g.dtype for g in exact.values()} == {torch.float32}
    assert {g.dtype for g in added.values()} == {torch.bfloat16}
    of_adding = gradient_norm([added[name].float() - exact[name] for name in exact])
    of_rounding = gradient_norm([exact[name].bfloat16().float() - exact[name] for name in exact])
    assert of_rounding < of_adding < 3 * of_rounding
    assert of_adding < 0.005 * gradient_norm(list(exact.values()))


def test_the_norm_of_bf16_gradients_is_an_fp32_number() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(size, generator=generator).bfloat16() for size in (1000, 77, 4096)]
    exact = torch.cat(gradients).double().norm().item()
    assert gradient_norm(gradients).dtype == torch.float32
    assert gradient_norm(gradients).item() == pytest.approx(exact, rel=1e-6)
    assert torch.nn.utils.get_total_norm(gradients).item() != pytest.approx(exact, rel=1e-4)
    wide = [gradient.float() for gradient in gradients]
    assert torch.equal(gradient_norm(wide), torch.nn.utils.get_total_norm(wide))


class TestAdapters:
    @pytest.mark.slow
    def test_a_bf16_base_gives_nearly_the_loss_of_an_fp32_one(self, tiny_folder: Path) -> None:
        """Under autocast both multiply in bf16; with a bf16 base the sums between layers are bf16 too."""
        held = stack("stochastic")
        reports = {}
        for frozen in ("fp32", "bf16"):
            trained = module(tiny_folder, LORA, held.model_copy(update={"frozen": frozen}), lr=1e-3)
            base = {name: t.clone() for name, t in trained.model.state_dict().items() if "lora_" not in name}
            reports[frozen] = fit(trained, steps(1, 4)).reports
            assert {p.dtype for p in adapters(trained.model).values()} == {torch.float32}
            assert isinstance(trained.trainer.optimizers[0], torch.optim.AdamW)  # fp32 needs no remedy
            after = trained.model.state_dict()
            assert all(
                torch.equal(after[name], tensor) and tensor.dtype == DTYPES[frozen] for name, tensor in base.items()
            )
            assert any(bool(p.any()) for name, p in adapters(trained.model).items() if "lora_B" in name)
        for mine, theirs in zip(reports["bf16"], reports["fp32"], strict=True):
            assert mine.loss_total == pytest.approx(theirs.loss_total, rel=0.005)  # bf16: 8 bits of significand
            assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=0.03)

    @pytest.mark.slow
    def test_and_learns_as_much(self, grown: Path) -> None:
        found = {}
        for frozen in ("fp32", "bf16"):
            held = stack("fp32").model_copy(update={"frozen": frozen})
            model = loaded(grown, LORA, held)
            before = validation_loss(model, held)
            learn(model, optimizer_of(model, held, 2e-3, 0), held, batches(1, 1, STEPS, 8), 2e-3)
            found[frozen] = before, validation_loss(model, held)
        gain = found["fp32"][0] - found["fp32"][1]
        assert gain > 0.1
        assert found["bf16"][1] == pytest.approx(found["fp32"][1], abs=0.02 * gain)


COMPARED = ("fp32", "8bit", "stochastic", "stochastic_8bit", "kahan")
"""The others' updates are equal to these ones' (test_optim_narrow_adamw.py)."""
STEPS = 150
"""Updates of each stack in the comparison."""
LR = 1e-4
"""Of an update in proportion to a weight of the tiny model what 1e-5 is to one of the released model, nearly."""


@pytest.fixture(scope="module")
def grown(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after it learnt the first domain, saved in bf16 as the released model is."""
    folder = tmp_path_factory.mktemp("grown") / "model"
    shutil.copytree(tiny_folder, folder)
    held = stack("fp32").model_copy(update={"autocast": False})
    model = load_model(tiny_folder, None, CPU, torch.float32)
    learn(model, optimizer_of(model, held, 1e-3, 0), held, batches(0, 0, 200, 16), 1e-3)
    weights = {name: tensor.detach().bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=[1, 2])
def curves(grown: Path, request: pytest.FixtureRequest) -> dict[str, float]:
    """The validation loss that each stack ends with, and `start`; the same rows and draws for all."""
    ends = {}
    for name in (*COMPARED, "plain"):
        held = stack("stochastic" if name == "plain" else name)
        model = loaded(grown, FullTuning(), held)
        optimizer = plain_bf16(model, LR) if name == "plain" else optimizer_of(model, held, LR, request.param)
        learn(model, optimizer, held, batches(1, request.param, STEPS, 8), LR)
        ends[name] = judged(model, grown)
    return {"start": judged(load_model(grown, None, CPU, torch.float32), grown), **ends}


def judged(model: VoxCPM2Model, folder: Path) -> float:
    """In fp32, whatever the model was trained in."""
    judge = load_model(folder, None, CPU, torch.float32)
    judge.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    return validation_loss(judge, stack("fp32").model_copy(update={"autocast": False}))


@pytest.mark.slow
class TestLearning:
    def test_plain_bf16_learns_far_less(self, curves: dict[str, float]) -> None:
        gain = curves["start"] - curves["fp32"]
        assert gain > 0.5
        assert curves["start"] - curves["plain"] < 0.7 * gain

    def test_every_stack_learns_as_fp32_weights_do(self, curves: dict[str, float]) -> None:
        """Worse by no more than 1 % of what training gains; seen are -0.9 to +0.3 %, of 8-bit state on fp32 -0.7 %."""
        gain = curves["start"] - curves["fp32"]
        for name in COMPARED:
            assert -0.03 * gain < curves[name] - curves["fp32"] < 0.01 * gain, name


def test_plain_bf16_loses_real_updates(tiny_folder: Path) -> None:
    """The third update of the tiny model at lr 1e-5, from weights that bf16 holds."""
    model = load_model(tiny_folder, None, CPU, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    optimizer = optimizer_of(model, stack("fp32"), 1e-5, 0)
    for step in range(1, 4):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        losses = position_losses(model, micro_batch(rows_of_step(step, 4)), activation_checkpointing=False)
        optimizer.zero_grad()
        (losses.diff.mean() + losses.stop.mean()).backward()
        optimizer.step()
    made = lost = 0
    of_norms = []
    for name, parameter in model.named_parameters():
        update = parameter.detach() - before[name]
        held = before[name].bfloat16()
        same = ((held.float() + update).bfloat16() == held) & (update != 0)
        made, lost = made + int((update != 0).sum()), lost + int(same.sum())
        if "norm" in name:
            of_norms.append(same.sum().item() / max(1, int((update != 0).sum())))
    assert made > 500_000
    assert 0.9 < lost / made < 1
    assert len(of_norms) > 10
    assert min(of_norms) == 1.0
