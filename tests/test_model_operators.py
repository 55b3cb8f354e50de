"""What the loss is computed with: which set computes, and that both give the same, backward too.

That a whole loss computed with either is upstream's is shown in test_model_loss.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from operator_material import CHANNELS, GROUPS, HEADS, ROUNDING, Doubled, Norm, agree, angles_of, drawn, rows_of
from torch import Tensor, nn

from voxtrain.model.cpu import columns, feed_forward
from voxtrain.model.cpu.attention import Patches, attention
from voxtrain.model.cpu.columns import is_plain
from voxtrain.model.cpu.products import turned
from voxtrain.model.layers import ALL
from voxtrain.model.operators import PLAIN, for_cpu, operators, prepare
from voxtrain.model.upstream import load_model

DEVICE = torch.device("cpu")


def test_the_set_is_the_one_that_is_right_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert operators("plain", DEVICE, torch.float32) is PLAIN
    assert operators("cpu", DEVICE, torch.float32) is for_cpu() is not None
    assert operators("cpu", DEVICE, torch.bfloat16) is PLAIN
    assert operators("cpu", torch.device("cuda"), torch.float32) is PLAIN
    with torch.autocast("cpu", torch.bfloat16):
        assert operators("cpu", DEVICE, torch.float32) is PLAIN
    with pytest.raises(ValueError, match="fast"):
        operators("fast", DEVICE, torch.float32)
    monkeypatch.setattr("voxtrain.model.operators.for_cpu", lambda: None)  # a torch without libgomp or oneDNN
    assert operators("cpu", DEVICE, torch.float32) is PLAIN
    prepare("cpu", DEVICE, torch.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(5, 12), (12, 5)])
def test_linear(sizes: tuple[int, int], bias: bool) -> None:
    layer, values = nn.Linear(*sizes, bias=bias), drawn(3, 4, sizes[0])
    fast = for_cpu().linear
    agree(lambda x, *_: layer(x), lambda x, *_: fast(layer, x), values, *layer.parameters())
    strided = drawn(4, 3, sizes[0]).transpose(0, 1)[:, 1:]
    torch.testing.assert_close(fast(layer, strided), layer(strided), **ROUNDING)


def test_linear_leaves_frozen_weights_alone_and_calls_what_is_no_plain_layer() -> None:
    layer, values, fast = nn.Linear(4, 3).requires_grad_(False), drawn(2, 4), for_cpu().linear
    fast(layer, values).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(values.grad, layer.weight.sum(dim=0).expand(2, 4), **ROUNDING)
    assert fast(nn.Linear(4, 3), torch.empty(0, 4)).shape == (0, 3)
    doubled = Doubled(4, 3)
    assert torch.equal(fast(doubled, values), doubled(values))


def test_embedding() -> None:
    layer = nn.Embedding(9, 4)
    tokens = torch.tensor([3, 1, 3])
    agree(lambda *_: layer(tokens), lambda *_: for_cpu().embedding(layer, tokens), layer.weight)


@pytest.mark.parametrize("shape", [(16, 16), (48, 32), (17, 33), (5, 40), (1, 3)])
def test_a_matrix_is_turned(shape: tuple[int, int]) -> None:
    matrix, other = drawn(*shape).detach(), drawn(20, 7).detach()
    for found, expected in zip(turned(matrix, other, matrix), (matrix, other, matrix), strict=True):
        assert torch.equal(found, expected.t())


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", [nn.Linear, Doubled])
def test_linear_in_columns(kind: Any, scale: float) -> None:
    layer, values, onto = kind(5, 7, bias=False), drawn(5, 16), drawn(7, 16)

    def plain(x: Tensor, past: Tensor, _: Tensor) -> Tensor:
        return past + scale * layer(x.t()).t()

    agree(plain, lambda x, past, _: columns.linear_onto(layer, x, past, scale), values, onto, layer.weight)


class _Block(nn.Module):
    """minicpm4/model.py: MiniCPMMLP."""

    def __init__(self, act_fn: nn.Module, down: nn.Module | None = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 9, bias=False), nn.Linear(4, 9, bias=False)
        self.down_proj, self.act_fn = down or nn.Linear(9, 4, bias=False), act_fn

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.down_proj(self.act_fn(self.gate_proj(values)) * self.up_proj(values))
        return result


class _Layer(nn.Module):
    """The second half of minicpm4/model.py: MiniCPMDecoderLayer."""

    def __init__(self, mlp: _Block, *, use_mup: bool = False) -> None:
        super().__init__()
        self.mlp, self.post_attention_layernorm, self.use_mup = mlp, Norm(4), use_mup

    def forward(self, hidden: Tensor, scale: float) -> Tensor:
        result: Tensor = hidden + scale * self.mlp(self.post_attention_layernorm(hidden))
        return result


@pytest.mark.parametrize("tokens", [48, 10])
@pytest.mark.parametrize("block", [_Block(nn.SiLU()), _Block(nn.GELU()), _Block(nn.SiLU(), Doubled(9, 4))])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_feed_forward(block: _Block, tokens: int, scale: float) -> None:
    """Blocks that are no plain ones, and tokens that fill no vector, go in pieces."""
    layer = _Layer(block, use_mup=scale != 1)
    assert feed_forward.is_taken(layer, torch.empty(4, 48)) == (
        scale == 1 and type(block.act_fn) is nn.SiLU and is_plain(block.down_proj)
    )

    def plain(x: Tensor, *_: Tensor) -> Tensor:
        return layer(x.t(), scale).t()

    def fast(x: Tensor, *_: Tensor) -> Tensor:
        if feed_forward.is_taken(layer, x):
            return feed_forward.feed_forward(layer, x)
        past, normed = columns.normed_beside(layer.post_attention_layernorm, x)
        return columns.feed_forward_onto(block, normed, past, scale)

    agree(plain, fast, drawn(4, tokens), *layer.parameters())


def test_what_is_frozen_gets_no_gradient() -> None:
    layer, values = _Layer(_Block(nn.SiLU())).requires_grad_(False), drawn(4, 16)
    feed_forward.feed_forward(layer, values).sum().backward()
    assert values.grad is not None
    assert all(weight.grad is None for weight in layer.parameters())


@pytest.mark.parametrize("tokens", [7, 300, 600])
def test_norm_and_what_goes_past_it(tokens: int) -> None:
    """300 and 600 tokens are more than go through together."""
    layer, values = Norm(9), drawn(9, tokens)

    def plain(x: Tensor, _: Tensor) -> Tensor:
        return x + 3 * layer(x.t()).t()

    def fast(x: Tensor, _: Tensor) -> Tensor:
        past, normed = columns.normed_beside(layer, x)
        return past + 3 * normed

    torch.testing.assert_close(columns.normed_beside(layer, values)[1], layer(values.t()).t(), **ROUNDING)
    agree(lambda x, _: layer(x.t()).t(), lambda x, _: columns.normed_beside(layer, x)[1], values, layer.weight)
    found = [
        torch.autograd.grad(function(values, layer.weight).sum(), (values, layer.weight)) for function in (plain, fast)
    ]
    torch.testing.assert_close(*(of_values for of_values, _ in found), **ROUNDING)
    torch.testing.assert_close(*(of_weight for _, of_weight in found), rtol=1e-5, atol=2e-6 * tokens)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(broken: float) -> None:
    """A step whose loss is not finite has to be seen."""
    angles = angles_of(torch.arange(3))
    q, kv = drawn(HEADS * CHANNELS, 3 * 16).detach(), drawn(2 * GROUPS * CHANNELS, 3 * 16).detach()
    q[0, 0] = broken
    assert not attention(q, kv, CHANNELS, Patches(16, 3, 3, angles, angles)).isfinite().all()
    values = drawn(4, 16).detach()
    values[1, 2] = broken
    assert not feed_forward.feed_forward(_Layer(_Block(nn.SiLU())), values).isfinite().all()
    assert not columns.normed_beside(Norm(4), values)[1].isfinite().all()


@pytest.mark.parametrize("stack", ["base_lm", "residual_lm", "feat_encoder.encoder"])
def test_whole_stacks(tiny_folder: Path, stack: str) -> None:
    """Rows of 3 and 20 positions and five patches: neither fills whole vectors; nor do the positions that are read."""
    transformer = load_model(tiny_folder, None, DEVICE, torch.float32, 3).get_submodule(stack)
    width = transformer.layers[0].self_attn.q_proj.in_features
    fast = for_cpu()
    if stack.startswith("feat"):
        values = drawn(5, 6, width)
        for read in (slice(0, 1), slice(-4, None)):
            agree(
                lambda x, read=read: PLAIN.patch_states(transformer, x, read, recompute=False),
                lambda x, read=read: fast.patch_states(transformer, x, read, recompute=True),
                values,
            )
        assert fast.patch_states(transformer, values[:0], slice(0, 1), recompute=False).shape == (0, 1, width)
        return
    rows, values = rows_of(3, 20), drawn(23, width)
    for read in (ALL, torch.tensor([1, 2, 7, 20])):
        agree(
            lambda x, read=read: PLAIN.row_states(transformer, x, rows, read, recompute=False),
            lambda x, read=read: fast.row_states(transformer, x, rows, read, recompute=True),
            values,
        )


def test_threads_change_no_bit_of_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, values = Norm(9), drawn(9, 700)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(torch.autograd.grad(columns.normed_beside(layer, values)[1].square().sum(), layer.weight)[0])
    assert torch.equal(*found)
