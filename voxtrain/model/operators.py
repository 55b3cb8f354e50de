"""What decoder layers are computed with: torch's own operators, or faster ones for a CPU; equal but for rounding.

`plain` runs anywhere and in any dtype; it calls upstream's linear layers and norms as modules. `cpu` is for fp32 on a
CPU (cpu_operators.py); what it cannot take, as layers with adapters, goes the plain way. `docs/performance.md` has the
measurements behind the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtrain.model import cpu_operators

Turns = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding, each [S, C] float32."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the positions of several rows stand that lie one after the other, without padding: [n] in all."""

    lengths: tuple[int, ...]  # positions of each row, their sum n
    position: Tensor  # [n] int64, place in its row
    padded: Tensor  # [n] int64, place in the rows padded to the longest, row-major


@dataclass(frozen=True, slots=True)
class Operators:
    """The parts of a decoder layer, on tokens [N, S, H] and their heads [N, S, heads, C]."""

    embedding: Callable[[Any, Tensor], Tensor]  # of an embedding of upstream's: tokens [n] -> [n, H]
    linear: Callable[[Any, Tensor], Tensor]  # of a linear layer of upstream's
    feed_forward: Callable[[Any, Tensor], Tensor]  # of a feed-forward block of upstream's
    norm: Callable[[Any, Tensor], Tensor]  # of an RMS norm of upstream's
    turn: Callable[[Tensor, Turns], Tensor]  # rotary embedding of heads
    patch_attention: Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v -> [N, S, heads x C], all hear all
    row_attention: Callable[[Tensor, Tensor, Tensor, Rows], Tensor]  # the same for N = 1: causal, each row by itself


def operators(kernels: str, device: torch.device, dtype: torch.dtype) -> Operators:
    """The operators for `trainer.kernels` (plain | cpu): those of the CPU only where they are right, else the plain."""
    if kernels not in ("plain", "cpu"):
        raise ValueError(f"{kernels} is none of plain, cpu")
    narrow = dtype != torch.float32 or torch.is_autocast_enabled(device.type)
    if kernels == "plain" or device.type != "cpu" or narrow or not cpu_operators.available():
        return PLAIN
    return CPU


def _called(layer: Any, values: Tensor) -> Tensor:
    result: Tensor = layer(values)
    return result


def _turn(heads: Tensor, turns: Turns) -> Tensor:
    """In float32, as upstream does (minicpm4/model.py: apply_rotary_pos_emb)."""
    cosine, sine = turns[0].unsqueeze(1), turns[1].unsqueeze(1)
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cosine + torch.cat((-second, first), dim=-1) * sine).to(heads.dtype)


def _patch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _attention(q, k, v, is_causal=False)


def _row_attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
    """One call for all rows, padded: what stands behind a row's end is heard by no position of it."""
    if len(rows.lengths) == 1:
        return _attention(q, k, v, is_causal=True)
    shape = (len(rows.lengths), max(rows.lengths))
    heard = _attention(*(_padded(heads, rows.padded, shape) for heads in (q, k, v)), is_causal=True)
    return heard.flatten(0, 1).index_select(0, rows.padded).unsqueeze(0)


def _padded(heads: Tensor, padded: Tensor, shape: tuple[int, int]) -> Tensor:
    """[1, n, heads, C] -> [B, T, heads, C]."""
    empty = heads.new_zeros(shape[0] * shape[1], *heads.shape[2:])
    return empty.index_copy(0, padded, heads[0]).view(*shape, *heads.shape[2:])


def _attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True).transpose(1, 2).flatten(2)


def _row_by_row(q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
    """One call for each row: on a CPU a call costs little, and positions of padding would cost as much as others."""
    parts = zip(*(torch.split(heads, list(rows.lengths), dim=1) for heads in (q, k, v)), strict=True)
    return torch.cat([_attention(*part, is_causal=True) for part in parts], dim=1)


PLAIN = Operators(_called, _called, _called, _called, _turn, _patch_attention, _row_attention)
CPU = Operators(
    cpu_operators.embedding,
    cpu_operators.linear,
    cpu_operators.feed_forward,
    cpu_operators.norm,
    cpu_operators.turn,
    cpu_operators.patch_attention,
    _row_by_row,
)
