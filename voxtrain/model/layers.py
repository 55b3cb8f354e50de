"""Our forward over upstream's decoder layers (minicpm4/model.py), without what no loss would see, by torch's operators.

The language models go through the positions of all rows one after the other, so that padding costs nothing; in the
last layer of a transformer only those tokens ask, and go on, that are read afterwards. Keys and values are computed for
all. Each layer can be computed again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from voxtrain.model.upstream import MiniCPMModel

Turns = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding, each [S, C] float32."""
Read = slice | Tensor
"""Which tokens of S are read after the last layer: a slice of them, or their places, in order."""
ALL = slice(None)
Attention = Callable[[Tensor, Tensor, Tensor, Read], Tensor]
"""What the tokens that ask hear, from q of these, and from k and v of all."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the positions of several rows stand that lie one after the other, without padding: [n] in all."""

    lengths: tuple[int, ...]  # positions of each row, their sum n
    position: Tensor  # [n] int64, place in its row
    padded: Tensor  # [n] int64, place in the rows padded to the longest, row-major


def patch_states(transformer: MiniCPMModel, tokens: Tensor, read: slice, *, recompute: bool) -> Tensor:
    """[N, S, H] -> [N, read, H]: the tokens of each of N patches hear each other."""
    turns = _turns(transformer, torch.arange(tokens.shape[1], device=tokens.device))

    def attention(q: Tensor, k: Tensor, v: Tensor, asking: Read) -> Tensor:
        return attend(q, k, v, is_causal=False)

    return _decode(transformer, tokens, turns, attention, read, recompute)


def row_states(transformer: MiniCPMModel, states: Tensor, rows: Rows, read: Read, *, recompute: bool) -> Tensor:
    """[n, H] -> [read, H]: each position hears those of its row before it, and itself."""

    def attention(q: Tensor, k: Tensor, v: Tensor, asking: Read) -> Tensor:
        if isinstance(asking, Tensor):  # the others of a row ask too, with zeros, and nobody reads what they hear
            q = q.new_zeros(1, k.shape[1], *q.shape[2:]).index_copy(1, asking, q)
        return _some(attend_in_rows(q, k, v, rows), asking)

    turns = _turns(transformer, rows.position)
    return _decode(transformer, states.unsqueeze(0), turns, attention, read, recompute)[0]


def turn(heads: Tensor, turns: Turns) -> Tensor:
    """Rotary embedding of heads [N, S, heads, C], in float32 as upstream (minicpm4/model.py: apply_rotary_pos_emb)."""
    cosine, sine = turns[0].unsqueeze(1), turns[1].unsqueeze(1)
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cosine + torch.cat((-second, first), dim=-1) * sine).to(heads.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """What q [N, S, heads, C] hears from k and v [N, S, groups, C]: [N, S, heads x C]."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True).transpose(1, 2).flatten(2)


def attend_in_rows(q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
    """The same for N = 1: causal, each row by itself, in one call for all.

    Rows are padded: what stands behind a row's end is heard by no position of it.
    """
    if len(rows.lengths) == 1:
        return attend(q, k, v, is_causal=True)
    shape = (len(rows.lengths), max(rows.lengths))
    heard = attend(*(_padded(heads, rows.padded, shape) for heads in (q, k, v)), is_causal=True)
    return heard.flatten(0, 1).index_select(0, rows.padded).unsqueeze(0)


def _padded(heads: Tensor, padded: Tensor, shape: tuple[int, int]) -> Tensor:
    """[1, n, heads, C] -> [B, T, heads, C]."""
    empty = heads.new_zeros(shape[0] * shape[1], *heads.shape[2:])
    return empty.index_copy(0, padded, heads[0]).view(*shape, *heads.shape[2:])


def _turns(transformer: MiniCPMModel, position: Tensor) -> Turns | None:
    if transformer.rope_emb is None:
        return None
    cosine, sine = transformer.rope_emb(position)
    return cosine, sine


def _decode(
    transformer: MiniCPMModel, hidden: Tensor, turns: Turns | None, attention: Attention, read: Read, recompute: bool
) -> Tensor:
    """minicpm4/model.py: forward."""
    for layer in transformer.layers:
        asking = read if layer is transformer.layers[-1] else ALL
        step = partial(_layer, layer, turns=turns, attention=attention, asking=asking)
        hidden = checkpoint(step, hidden, use_reentrant=False, preserve_rng_state=False) if recompute else step(hidden)
    result: Tensor = transformer.norm(hidden)
    return result


def _layer(layer: Any, hidden: Tensor, *, turns: Turns | None, attention: Attention, asking: Read) -> Tensor:
    """minicpm4/model.py: MiniCPMDecoderLayer.forward. [N, S, H] -> [N, asking, H]."""
    scale = layer.scale_depth / math.sqrt(layer.num_hidden_layers) if layer.use_mup else 1.0
    heard = _attended(layer.self_attn, layer.input_layernorm(hidden), turns, attention, asking)
    hidden = _some(hidden, asking) + (heard * scale if layer.use_mup else heard)
    fed: Tensor = layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden + (fed * scale if layer.use_mup else fed)


def _attended(block: Any, normed: Tensor, turns: Turns | None, attention: Attention, asking: Read) -> Tensor:
    def heads(projection: Any, tokens: Tensor) -> Tensor:
        values: Tensor = projection(tokens)
        return values.view(*values.shape[:2], values.shape[2] // block.head_dim, block.head_dim)

    q, k, v = heads(block.q_proj, _some(normed, asking)), heads(block.k_proj, normed), heads(block.v_proj, normed)
    if turns is not None:
        cosine, sine = turns
        q, k = turn(q, (cosine[asking], sine[asking])), turn(k, turns)
    result: Tensor = block.o_proj(attention(q, k, v, asking))
    return result


def _some(tokens: Tensor, asking: Read) -> Tensor:
    """[N, S, H] -> [N, asking, H]."""
    return tokens.index_select(1, asking) if isinstance(asking, Tensor) else tokens[:, asking].contiguous()
