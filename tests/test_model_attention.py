"""Attention on tokens in columns, by itself and as the first half of a decoder layer."""

from __future__ import annotations

import pytest
import torch
from operator_material import (
    CHANNELS,
    GROUPS,
    HEADS,
    ROUNDING,
    Doubled,
    Norm,
    agree,
    angles_of,
    drawn,
    repeated,
    rows_of,
    stretches,
)
from torch import Tensor, nn

from voxtrain.model.cpu import columns, self_attention
from voxtrain.model.cpu.attention import Patches, Stretches, attention
from voxtrain.model.layers import attend, attend_in_rows, turn


@pytest.mark.parametrize("patches", [1, 16, 37])
@pytest.mark.parametrize(("tokens", "asking"), [(7, 7), (7, 2), (5, 1)])
def test_patch_attention(patches: int, tokens: int, asking: int) -> None:
    angles = angles_of(torch.arange(tokens))
    hearing = Patches(patches, asking, tokens, angles, angles.at(slice(tokens - asking, None)))

    def rows(columns: Tensor, each: int) -> Tensor:
        return columns.view(-1, CHANNELS, each, patches).permute(3, 2, 0, 1)  # [N, S, heads, C]

    def plain(q: Tensor, kv: Tensor) -> Tensor:
        k, v = rows(kv, tokens).chunk(2, dim=2)
        turned_q = turn(rows(q, asking), repeated(hearing.asking_angles))
        heard = attend(turned_q, turn(k, repeated(angles)), v, is_causal=False)
        return heard.permute(2, 1, 0).reshape(HEADS * CHANNELS, asking * patches)

    q, kv = drawn(HEADS * CHANNELS, asking * patches), drawn(2 * GROUPS * CHANNELS, tokens * patches)
    agree(plain, lambda q, kv: attention(q, kv, CHANNELS, hearing), q, kv)


@pytest.mark.parametrize("lengths", [(4, 1, 6), (40, 16, 17)])
@pytest.mark.parametrize("every", [1, 3])
def test_rows_hear_themselves_alone_and_nothing_that_comes_later(lengths: tuple[int, ...], every: int) -> None:
    """Of rows shorter and longer than a vector, all positions ask, or every third."""
    rows, n = rows_of(*lengths), sum(lengths)
    asking = torch.arange(0, n, every)
    hearing = stretches(rows, asking)

    def plain(q: Tensor, kv: Tensor) -> Tensor:
        k, v = kv.t().view(1, n, 2 * GROUPS, CHANNELS).chunk(2, dim=2)
        own = turn(q.t().view(1, len(asking), HEADS, CHANNELS), repeated(hearing.asking_angles))
        every_q = own.new_zeros(1, n, HEADS, CHANNELS).index_copy(1, asking, own)
        return attend_in_rows(every_q, turn(k, repeated(hearing.angles)), v, rows)[0, asking].t()

    q, kv = drawn(HEADS * CHANNELS, len(asking)), drawn(2 * GROUPS * CHANNELS, n)
    agree(plain, lambda q, kv: attention(q, kv, CHANNELS, hearing), q, kv)
    first = attention(q, kv, CHANNELS, hearing)[:, :1]  # hears itself alone, whatever follows it
    values = kv[GROUPS * CHANNELS :, :1].view(GROUPS, CHANNELS).repeat_interleave(HEADS // GROUPS, dim=0)
    torch.testing.assert_close(first.view(HEADS, CHANNELS), values, **ROUNDING)


class _Hearing(nn.Module):
    """The first half of minicpm4/model.py: MiniCPMDecoderLayer, without its forward."""

    def __init__(self, width: int = 7, *, use_mup: bool = False) -> None:
        super().__init__()
        block = nn.Module()
        for name, heads in (("q_proj", HEADS), ("k_proj", GROUPS), ("v_proj", GROUPS)):
            setattr(block, name, nn.Linear(width, heads * CHANNELS, bias=False))
        block.o_proj, block.head_dim = nn.Linear(HEADS * CHANNELS, width, bias=False), CHANNELS
        self.self_attn, self.input_layernorm, self.use_mup = block, Norm(width), use_mup

    def in_pieces(self, values: Tensor, hearing: Patches | Stretches) -> Tensor:
        past, normed = columns.normed_beside(self.input_layernorm, values)
        heard = attention(*columns.heads(self.self_attn, normed, normed), CHANNELS, hearing)
        return columns.linear_onto(self.self_attn.o_proj, heard, past, 1.0)


@pytest.mark.parametrize("hearing", ["patches", "rows"])
def test_self_attention(hearing: str) -> None:
    """As one function it is what its pieces give."""
    layer, angles = _Hearing(), angles_of(torch.arange(3))
    who = stretches(rows_of(20, 28), torch.arange(48)) if hearing == "rows" else Patches(16, 3, 3, angles, angles)
    assert self_attention.is_taken(layer)
    agree(
        lambda x, *_: layer.in_pieces(x, who),
        lambda x, *_: self_attention.self_attention(layer, x, who),
        drawn(7, 48),
        *layer.parameters(),
    )


def test_self_attention_gives_gradients_to_what_learns_alone() -> None:
    """Layers with adapters or a scale go in pieces."""
    layer, values, angles = _Hearing(), drawn(7, 48), angles_of(torch.arange(3))
    learns = layer.requires_grad_(False).self_attn.k_proj.weight.requires_grad_(True)
    found = self_attention.self_attention(layer, values, Patches(16, 3, 3, angles, angles))
    found.sum().backward()
    assert values.grad is not None
    assert [weight is learns for weight in layer.parameters() if weight.grad is not None] == [True]
    layer.self_attn.k_proj = Doubled(7, GROUPS * CHANNELS, bias=False)
    assert not self_attention.is_taken(layer)
    assert not self_attention.is_taken(_Hearing(use_mup=True))
