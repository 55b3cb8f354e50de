"""Attention of both kinds on tokens in columns, as functions with their own backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from voxtrain.model.cpu import patch_kernels, row_kernels
from voxtrain.model.cpu.kernel import Kernel, number, run


@dataclass(frozen=True, slots=True)
class Angles:
    """Cosine and sine of the rotary embedding of some tokens, each [tokens, channels / 2]: float32, contiguous."""

    cosine: Tensor
    sine: Tensor

    def at(self, places: Any) -> Angles:
        """Of some of them."""
        return Angles(self.cosine[places].contiguous(), self.sine[places].contiguous())


@dataclass(frozen=True, slots=True)
class Patches:
    """Who hears whom: each of `asking` tokens of a patch all of its `tokens`. Tokens lie as [token, patch]."""

    patches: int  # a multiple of 16 is fastest
    asking: int
    tokens: int
    angles: Angles  # of the tokens of a patch
    asking_angles: Angles

    def forward_with(self) -> tuple[Kernel, int]:
        """The kernel, and its chunks for each group of heads."""
        return patch_kernels.attention, -(-self.patches // patch_kernels.PATCHES_TOGETHER)

    def backward_with(self) -> tuple[Kernel, int]:
        """The same for the way back."""
        return patch_kernels.attention_back, -(-self.patches // patch_kernels.PATCHES_TOGETHER)

    def arguments(self, factor: Tensor) -> tuple[int | Tensor, ...]:
        """What a kernel is told between the heads and q."""
        hearing, asking = self.angles, self.asking_angles
        sizes = (self.patches, self.asking, self.tokens)
        return (*sizes, factor, hearing.cosine, hearing.sine, asking.cosine, asking.sine)


@dataclass(frozen=True, slots=True)
class Stretches:
    """Who hears whom: each asking token the first `hears` tokens of its row. Rows lie one after the other."""

    q_ends: Tensor  # [rows + 1] int64, where each row begins among the tokens that ask, and their number
    k_ends: Tensor  # [rows + 1] int64, the same among all tokens
    hears: Tensor  # [asking] int64
    longest: int
    angles: Angles  # of all tokens
    asking_angles: Angles

    def forward_with(self) -> tuple[Kernel, int]:
        """The kernel, and its chunks for each group of heads."""
        return row_kernels.attention, len(self.q_ends) - 1

    def backward_with(self) -> tuple[Kernel, int]:
        """The same for the way back."""
        return row_kernels.attention_back, len(self.q_ends) - 1

    def arguments(self, factor: Tensor) -> tuple[int | Tensor, ...]:
        """What a kernel is told between the heads and q."""
        hearing, asking = self.angles, self.asking_angles
        sizes = (len(self.hears), len(hearing.cosine), len(self.q_ends) - 1, self.longest)
        ends = (self.q_ends, self.k_ends, self.hears)
        return (*sizes, factor, *ends, hearing.cosine, hearing.sine, asking.cosine, asking.sine)


def attention(q: Tensor, kv: Tensor, channels: int, hearing: Patches | Stretches) -> Tensor:
    """What q [heads x channels, asking] hears of kv [2 x groups x channels, tokens], keys above values: like q."""
    function: Any = _Attention.apply
    heard: Tensor = function(q, kv, channels, hearing)
    return heard


def hear(q: Tensor, kv: Tensor, channels: int, hearing: Patches | Stretches) -> Tensor:
    """The same outside of autograd."""
    heard = torch.empty_like(q)
    _run(*hearing.forward_with(), q, kv, channels, hearing, heard)
    return heard


def hear_back(
    q: Tensor, kv: Tensor, channels: int, hearing: Patches | Stretches, gradient: Tensor, of_q: Tensor, of_kv: Tensor
) -> None:
    """Write the gradients of q and kv, from that of what was heard."""
    _run(*hearing.backward_with(), q, kv, channels, hearing, gradient, of_q, of_kv)


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, channels: int, hearing: Patches | Stretches) -> Tensor:
        ctx.save_for_backward(q, kv)
        ctx.channels, ctx.hearing = channels, hearing
        return hear(q, kv, channels, hearing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, kv = ctx.saved_tensors
        of_q, of_kv = torch.empty_like(q), torch.empty_like(kv)
        hear_back(q, kv, ctx.channels, ctx.hearing, gradient.contiguous(), of_q, of_kv)
        return of_q, of_kv, None, None


def _run(
    kernel: Kernel, chunks: int, q: Tensor, kv: Tensor, channels: int, hearing: Patches | Stretches, *more: Tensor
) -> None:
    heads, groups = q.shape[0] // channels, kv.shape[0] // (2 * channels)
    told = hearing.arguments(number(channels**-0.5))
    run(kernel, chunks * groups, channels, heads, groups, *told, q, kv, *more)
