"""The operators of decoder layers: which set computes, and that both give the same, backward too.

That a whole loss computed with either is upstream's is shown in test_model_loss.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from voxtrain.model import cpu_operators
from voxtrain.model.operators import CPU, PLAIN, Operators, Rows, operators

DEVICE = torch.device("cpu")
ROUNDING = {"rtol": 1e-5, "atol": 2e-6}  # float32 sums of about a hundred terms of order one, in another order
HEADS, GROUPS, CHANNELS = 6, 2, 10


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


def agree(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """`function` of either set and of the inputs gives the same result, and the same gradients of its weighted sum."""
    found = []
    for using in (PLAIN, CPU):
        result = function(using, *inputs)
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(3))
        found.append([result, *torch.autograd.grad((result * weights).sum(), inputs)])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, **ROUNDING)


def test_the_set_is_the_one_that_is_right_here() -> None:
    assert operators("plain", DEVICE, torch.float32) is PLAIN
    assert operators("cpu", DEVICE, torch.float32) is CPU
    assert operators("cpu", DEVICE, torch.bfloat16) is PLAIN
    assert operators("cpu", torch.device("cuda"), torch.float32) is PLAIN
    with torch.autocast("cpu", torch.bfloat16):
        assert operators("cpu", DEVICE, torch.float32) is PLAIN
    with pytest.raises(ValueError, match="fast"):
        operators("fast", DEVICE, torch.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(5, 12), (12, 5)])
def test_linear(sizes: tuple[int, int], bias: bool) -> None:
    layer, values = nn.Linear(*sizes, bias=bias), drawn(3, 4, sizes[0])
    agree(lambda using, x, *_: using.linear(layer, x), values, *layer.parameters())
    strided = drawn(4, 3, sizes[0]).transpose(0, 1)[:, 1:]
    torch.testing.assert_close(CPU.linear(layer, strided), layer(strided), **ROUNDING)


def test_linear_leaves_frozen_weights_alone_and_calls_what_is_no_plain_layer() -> None:
    layer, values = nn.Linear(4, 3).requires_grad_(False), drawn(2, 4)
    CPU.linear(layer, values).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(values.grad, layer.weight.sum(dim=0).expand(2, 4), **ROUNDING)
    assert CPU.linear(nn.Linear(4, 3), torch.empty(0, 4)).shape == (0, 3)

    class Doubled(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * super().forward(values)

    doubled = Doubled(4, 3)
    assert torch.equal(CPU.linear(doubled, values), doubled(values))


class _Block(nn.Module):
    """minicpm4/model.py: MiniCPMMLP."""

    def __init__(self, act_fn: nn.Module, down: nn.Module | None = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 9, bias=False), nn.Linear(4, 9, bias=False)
        self.down_proj, self.act_fn = down or nn.Linear(9, 4, bias=False), act_fn

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.down_proj(self.act_fn(self.gate_proj(values)) * self.up_proj(values))
        return result


def test_feed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_operators, "TOKENS_TOGETHER", 4)  # of ten: four, four and two
    block, values = _Block(nn.SiLU()), drawn(2, 5, 4)
    agree(lambda using, x, *_: using.feed_forward(block, x), values, *block.parameters())


def test_feed_forward_leaves_frozen_weights_alone_and_calls_what_is_no_plain_block() -> None:
    block, values = _Block(nn.SiLU()).requires_grad_(False), drawn(2, 4)
    agree(lambda using, x: using.feed_forward(block, x), values)
    CPU.feed_forward(block, values).sum().backward()
    assert all(weight.grad is None for weight in block.parameters())
    assert CPU.feed_forward(block, torch.empty(0, 4)).shape == (0, 4)
    for other in (_Block(nn.GELU()), _Block(nn.SiLU(), nn.Linear(9, 4))):
        agree(lambda using, x, *_, other=other: using.feed_forward(other, x), values, *other.parameters())


def test_norm() -> None:
    layer = _Norm(9)
    values = drawn(2, 5, 9)
    agree(lambda using, x, _: using.norm(layer, x), values, layer.weight)


class _Norm(nn.Module):
    """minicpm4/model.py: rms_layernorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.linspace(0.5, 2, width)), 1e-5

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


def test_turn() -> None:
    angles = torch.arange(7).unsqueeze(1) * torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01]).repeat(2)
    turns, heads = (angles.cos(), angles.sin()), drawn(3, 7, HEADS, CHANNELS)
    agree(lambda using, x: using.turn(x, turns), heads)
    split = drawn(3, 7, 2 * HEADS, CHANNELS).view(3, 7, HEADS, 2, CHANNELS)[:, :, :, 0]  # not contiguous
    torch.testing.assert_close(CPU.turn(split, turns), PLAIN.turn(split, turns), **ROUNDING)


@pytest.mark.parametrize("asking", [7, 2])
def test_patch_attention(asking: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_operators, "PATCHES_TOGETHER", 2)  # of five: two, two and one
    q, k, v = drawn(5, asking, HEADS, CHANNELS), drawn(5, 7, GROUPS, CHANNELS), drawn(5, 7, GROUPS, CHANNELS)
    agree(lambda using, *qkv: using.patch_attention(*qkv), q, k, v)


def rows_of(*lengths: int) -> Rows:
    position = torch.cat([torch.arange(length) for length in lengths])
    start = torch.repeat_interleave(torch.arange(len(lengths)) * max(lengths), torch.tensor(lengths))
    return Rows(lengths, position, start + position)


@pytest.mark.parametrize("using", [PLAIN, CPU], ids=["plain", "cpu"])
def test_rows_hear_themselves_alone_and_nothing_that_comes_later(using: Operators) -> None:
    lengths = (4, 1, 6)
    q, k, v = (drawn(1, sum(lengths), heads, CHANNELS) for heads in (HEADS, GROUPS, GROUPS))
    together = using.row_attention(q, k, v, rows_of(*lengths))
    assert together.shape == (1, sum(lengths), HEADS * CHANNELS)
    parts = [torch.split(heads, lengths, dim=1) for heads in (q, k, v)]
    alone = [using.row_attention(*part, rows_of(part[0].shape[1])) for part in zip(*parts, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), **ROUNDING)
    last = [heads[:, :1] for heads in (q, k, v)]  # the first position hears itself, and so do all that follow it
    torch.testing.assert_close(together[:, :1], using.row_attention(*last, rows_of(1)), **ROUNDING)
    agree(lambda using, *qkv: using.row_attention(*qkv, rows_of(*lengths)), q, k, v)
