"""AdamW over bf16 weights: the updates of fp32 or 8-bit AdamW, none of them lost, resumed bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from voxtrain.checkpoint.resume import load_state
from voxtrain.checkpoint.snapshot import write_state
from voxtrain.memory.widths import WORKSPACE_BYTES
from voxtrain.optim import eight_bits, narrow_adamw
from voxtrain.optim.adamw import AdamW
from voxtrain.optim.halves import join
from voxtrain.optim.narrow_adamw import NarrowAdamW
from voxtrain.run_folder import RunFolder

RULE = AdamW(lr=1e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
SHAPES = ((150, 77), (512,), (129, 64))
"""More values than a piece (below), fewer than 4096, and a number of them that is no multiple of 256."""
KINDS = [
    ("fp32", "stochastic"), ("8bit", "stochastic"), ("fp32", "kahan"), ("8bit", "kahan"), ("host", "nearest"),
    ("host_8bit", "nearest"),
]  # fmt: skip
PIECE = narrow_adamw.PIECE
Build = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow_adamw, "PIECE", 8192)


class Learner(nn.Module):
    """Weights at the released model's scale, and gradients that are a function of the step."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for number, shape in enumerate(SHAPES):
            weight = (0.02 * torch.randn(shape, generator=generator)).bfloat16().to(dtype)
            self.register_parameter(f"weight_{number}", nn.Parameter(weight))
        self.steps_done, self.rows_seen, self.skipped = 0, 0, list[int]()

    def learnt_tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.state_dict())

    def train_on(self, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(1000 + step)
            for weight in self.parameters():
                drawn = torch.randn(weight.shape, generator=generator) + 0.3  # not all noise: the weights go somewhere
                weight.grad = drawn.bfloat16().to(weight.dtype)
            optimizer.step()
            self.steps_done = step


def narrow(state: str, rounding: str, seed: int = 5) -> Build:
    return lambda parameters: RULE.build(parameters, state, rounding, seed, "card")


def fused(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **RULE.model_dump(), fused=True)


def trained(build: Build, dtype: torch.dtype, steps: int = 6) -> tuple[Learner, torch.optim.Optimizer]:
    learner = Learner(dtype)
    optimizer = build(learner.parameters())
    learner.train_on(optimizer, range(1, steps + 1))
    return learner, optimizer


def whole_weights(learner: Learner, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights with what is kept beside them, in fp32."""
    found = []
    for weight in learner.parameters():
        state = optimizer.state[weight]
        if "remainder" in state:
            found.append(join(weight.detach().view(-1), state["remainder"]).view(weight.shape))
        else:
            found.append(state["master"].view(weight.shape) if "master" in state else weight.detach().float())
    return found


class TestEquality:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_master_learns_as_torchs_adamw_on_fp32_weights(self, dtype: torch.dtype) -> None:
        expected = list(trained(fused, torch.float32)[0].parameters())
        learner, optimizer = trained(narrow("host", "nearest"), dtype)
        for mine, theirs in zip(whole_weights(learner, optimizer), expected, strict=True):
            assert torch.equal(mine, theirs)
        for mine, theirs in zip(learner.parameters(), expected, strict=True):
            assert torch.equal(mine, theirs.to(dtype))

    def test_two_halves_learn_as_torchs_adamw_on_fp32_weights(self) -> None:
        expected = trained(fused, torch.float32)[0].parameters()
        for mine, theirs in zip(
            whole_weights(*trained(narrow("fp32", "kahan"), torch.bfloat16)), expected, strict=True
        ):
            assert torch.equal(mine, theirs)

    @pytest.mark.parametrize(("state", "rounding"), [("8bit", "kahan"), ("host_8bit", "nearest")])
    def test_8bit_state_is_bitsandbytes_on_fp32_weights(self, state: str, rounding: str) -> None:
        built = trained(lambda parameters: RULE.build(parameters, "8bit", "nearest", 0, "card"), torch.float32)
        learner, optimizer = trained(narrow(state, rounding), torch.bfloat16)
        for mine, theirs, weight, other in zip(
            whole_weights(learner, optimizer),
            built[0].parameters(),
            learner.parameters(),
            built[0].parameters(),
            strict=True,
        ):
            if mine.numel() < eight_bits.SMALLEST:  # fp32 state: torch's arithmetic here, bitsandbytes' there
                torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=0)
                continue
            assert torch.equal(mine, theirs)
            ours, bnb = optimizer.state[weight], built[1].state[other]
            assert ours["state1"].dtype == torch.uint8
            for name in ("state1", "state2", "absmax1", "absmax2"):
                assert torch.equal(ours[name].view(-1), bnb[name].view(-1)), name

    def test_random_rounding_differs_from_fp32_by_less_than_a_bf16_step(self) -> None:
        first = trained(fused, torch.float32, steps=1)[0].parameters()
        found = trained(narrow("fp32", "stochastic"), torch.bfloat16, steps=1)[0].parameters()
        for mine, theirs in zip(found, first, strict=True):
            assert ((mine.float() - theirs).abs() < theirs.abs() * 2**-7).all()

    def test_the_size_of_a_piece_changes_nothing_but_random_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for state, rounding in KINDS[2:]:
            small = whole_weights(*trained(narrow(state, rounding), torch.bfloat16))
            with monkeypatch.context() as patch:
                patch.setattr(narrow_adamw, "PIECE", 2**22)
                large = whole_weights(*trained(narrow(state, rounding), torch.bfloat16))
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(small, large, strict=True))


class TestNoUpdateIsLost:
    """AdamW at lr 1e-5 on weights of the released model's scale (standard deviation 0.02) and on norms (1)."""

    STEPS = 60

    def moved(self, build: Build, dtype: torch.dtype) -> list[torch.Tensor]:
        learner, _ = trained(build, dtype, self.STEPS)
        return [
            after.detach().float() - before.detach().float()
            for after, before in zip(learner.parameters(), Learner(dtype).parameters(), strict=True)
        ]

    @pytest.mark.slow
    def test_plain_bf16_loses_most_and_ours_loses_none(self) -> None:
        """Each way's movement along that of fp32 weights, 1.0 being all of it."""
        wanted = self.moved(fused, torch.float32)
        plain = self.moved(lambda p: torch.optim.AdamW(p, **RULE.model_dump()), torch.bfloat16)
        assert self.along(plain, wanted) < 0.2
        for state, rounding in KINDS:
            # 8-bit state rounds the moments; bf16 weights are within half a step of what they stand for
            assert self.along(self.moved(narrow(state, rounding), torch.bfloat16), wanted) == pytest.approx(1, abs=0.03)

    @staticmethod
    def along(moved: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
        products = sum(float((mine * theirs).sum()) for mine, theirs in zip(moved, wanted, strict=True))
        return products / sum(float(theirs.square().sum()) for theirs in wanted)

    def test_shares_of_updates_that_nearest_rounding_loses(self) -> None:
        for scale, lost_at_least in ((0.02, 0.8), (0.05, 0.93), (1.0, 1.0)):
            weight = scale * torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
            if scale == 1.0:
                weight = 1 + 0.01 * weight  # a norm's weights lie about 1
            weight = weight.bfloat16()
            update = torch.full_like(weight, 1e-5, dtype=torch.float32)  # AdamW moves a weight by about lr
            lost = ((weight.float() - update).bfloat16() == weight).float().mean().item()
            assert lost >= lost_at_least, scale


class TestRandomNumbers:
    def weights(self, seed: int, first_seed: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(first_seed)
        return [
            weight.detach() for weight in trained(narrow("fp32", "stochastic", seed), torch.bfloat16)[0].parameters()
        ]

    def test_they_are_a_function_of_the_seed_alone(self) -> None:
        one, same, other = self.weights(5), self.weights(5, first_seed=9), self.weights(6)
        assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    def test_each_step_and_each_tensor_has_its_own(self) -> None:
        equal = nn.ParameterList([torch.full((4096,), 0.02, dtype=torch.bfloat16) for _ in range(2)])
        optimizer = RULE.build(equal.parameters(), "fp32", "stochastic", 5, "card")
        seen = []
        for _ in range(2):
            for weight in equal:
                weight.data.fill_(0.02)
                weight.grad = torch.ones_like(weight)
            optimizer.step()
            seen += [weight.detach().clone() for weight in equal]
        assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])

    def test_a_tensor_without_a_gradient_does_not_shift_those_of_others(self) -> None:
        learners = [Learner(torch.bfloat16) for _ in range(2)]
        for learner, skipped in zip(learners, (None, "weight_0"), strict=True):
            optimizer = RULE.build(learner.parameters(), "fp32", "stochastic", 5, "card")
            for name, weight in learner.named_parameters():
                weight.grad = None if name == skipped else torch.ones_like(weight)
            optimizer.step()
        assert torch.equal(learners[0].weight_1, learners[1].weight_1)
        assert torch.equal(learners[1].weight_0, Learner(torch.bfloat16).weight_0)


@pytest.mark.parametrize(("state", "rounding"), KINDS)
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path, state: str, rounding: str) -> None:
    """Weights, moments, and what completes the weights, through the files of a state (weights_only)."""
    build = narrow(state, rounding)
    whole, whole_optimizer = trained(build, torch.bfloat16, steps=7)
    run = RunFolder(tmp_path)
    write_state(run, *trained(build, torch.bfloat16, steps=4), "f")
    fresh = Learner(torch.bfloat16, seed=77)
    optimizer = build(fresh.parameters())
    torch.manual_seed(123)
    assert load_state(run, fresh, optimizer) == 4
    fresh.train_on(optimizer, range(5, 8))
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))
    for mine, theirs in zip(fresh.parameters(), whole.parameters(), strict=True):
        found, wanted = optimizer.state[mine], whole_optimizer.state[theirs]
        assert found.keys() == wanted.keys()
        for key, value in found.items():
            same = torch.equal(value, wanted[key]) if isinstance(value, torch.Tensor) else value == wanted[key]
            assert same, key
            assert not isinstance(value, torch.Tensor) or value.dtype == wanted[key].dtype
    kept = {key for kinds in optimizer.state.values() for key in kinds}
    assert ("state1" in kept) == ("8bit" in state)
    assert ("remainder" in kept, "master" in kept) == (rounding == "kahan", state.startswith("host"))


def test_the_first_update_may_come_after_a_state_without_moments(tmp_path: Path) -> None:
    build = narrow("8bit", "kahan")
    run = RunFolder(tmp_path)
    write_state(run, *trained(build, torch.bfloat16, steps=0), "f")
    fresh = Learner(torch.bfloat16, seed=77)
    optimizer = build(fresh.parameters())
    assert load_state(run, fresh, optimizer) == 0
    fresh.train_on(optimizer, [1])
    expected = trained(build, torch.bfloat16, steps=1)[0].parameters()
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), expected, strict=True))


class Made(TorchDispatchMode):
    """The most bytes that tensors made meanwhile held at once; views, and what stood before, are not counted."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in before}
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known | self.live.keys():
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata)
        self.most = max(self.most, sum(self.live.values()))
        return made


@pytest.mark.parametrize(("state", "rounding"), [kind for kind in KINDS if "8bit" not in kind[0]])
def test_the_workspace_is_what_the_plan_counts(state: str, rounding: str) -> None:
    """Of a tensor of ten pieces. In 8 bits the update is one kernel on a GPU, which needs none."""
    weight = nn.Parameter(torch.zeros(10 * narrow_adamw.PIECE, dtype=torch.bfloat16))
    weight.grad = torch.ones_like(weight)
    optimizer = narrow(state, rounding)([weight])
    optimizer.step()
    standing = [weight, weight.grad, *(v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor))]
    with Made(standing) as made:
        optimizer.step()
    pieces = WORKSPACE_BYTES // PIECE
    assert 0 < made.most <= pieces * narrow_adamw.PIECE + 4096


class TestRefusals:
    @pytest.mark.parametrize(("state", "rounding"), [("fp32", "nearest"), ("8bit", "nearest"), ("paged_8bit", "kahan")])
    def test_what_loses_updates_of_bf16_weights(self, state: str, rounding: str) -> None:
        with pytest.raises(ValueError, match="would lose the updates"):
            RULE.build(Learner(torch.bfloat16).parameters(), state, rounding, 0, "card")

    def test_words_that_mean_nothing(self) -> None:
        for state, rounding in (("fp32", "up"), ("4bit", "nearest")):
            with pytest.raises(ValueError, match="known are"):
                RULE.build(Learner(torch.bfloat16).parameters(), state, rounding, 0, "card")

    def test_parameters_of_two_dtypes(self) -> None:
        mixed = [nn.Parameter(torch.ones(4, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]
        with pytest.raises(ValueError, match="float32"):
            RULE.build(mixed, "fp32", "stochastic", 0, "card")

    def test_fp32_weights_need_no_remedy(self) -> None:
        """Adapters are fp32 whatever the stack says of the model's weights."""
        built = RULE.build(Learner(torch.float32).parameters(), "fp32", "stochastic", 0, "card")
        assert not isinstance(built, NarrowAdamW)
