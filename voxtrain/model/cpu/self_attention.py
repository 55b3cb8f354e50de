"""The first half of a decoder layer as one function with its own backward pass, on tokens in columns.

As feed_forward.py does with the second half. Queries, keys and values come from one product, and so do the gradients of
their weights. Layers with adapters, and those of which not all tokens ask, go in pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from voxtrain.model.cpu.attention import Patches, Stretches, hear, hear_back
from voxtrain.model.cpu.columns import is_plain, normalise, normalise_back
from voxtrain.model.cpu.products import product, product_onto, turned


def is_taken(layer: Any) -> bool:
    """Whether `self_attention` is what the layer does."""
    block = layer.self_attn
    return not layer.use_mup and is_plain(block.q_proj, block.k_proj, block.v_proj, block.o_proj)


def self_attention(layer: Any, hidden: Tensor, hearing: Patches | Stretches) -> Tensor:
    """Tokens [H, n], each plus what it hears of all (minicpm4/model.py: MiniCPMAttention)."""
    block, norm = layer.self_attn, layer.input_layernorm
    weights = (each.weight for each in (block.q_proj, block.k_proj, block.v_proj, block.o_proj))
    function: Any = _SelfAttention.apply
    result: Tensor = function(hidden, hearing, block.head_dim, norm.variance_epsilon, norm.weight, *weights)
    return result


class _SelfAttention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        hearing: Patches | Stretches,
        channels: int,
        epsilon: float,
        norm: Tensor,
        of_q: Tensor,
        of_k: Tensor,
        of_v: Tensor,
        of_o: Tensor,
    ) -> Tensor:
        ctx.hearing, ctx.channels = hearing, channels
        ctx.ends = ends = len(of_q), len(of_q) + len(of_k)
        normed, scale = normalise(hidden, norm, epsilon)
        weights = torch.cat((of_q, of_k, of_v))
        given = product(weights, normed.t())
        q, kv = given.tensor_split(ends[:1])
        heard = hear(q, kv, channels, hearing)
        ctx.save_for_backward(hidden, normed, scale, given, heard, norm, weights, of_o)
        return product_onto(of_o, heard.t(), hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, normed, scale, given, heard, norm, weights, of_o = ctx.saved_tensors
        wanted, gradient, ends = ctx.needs_input_grad, gradient.contiguous(), ctx.ends
        weights_turned, o_turned = turned(weights, of_o)
        of_heard = product(o_turned, gradient.t())
        of_given = torch.empty_like(given)
        (q, kv), (of_q, of_kv) = given.tensor_split(ends[:1]), of_given.tensor_split(ends[:1])
        hear_back(q, kv, ctx.channels, ctx.hearing, of_heard, of_q, of_kv)
        found = product(of_given, normed).tensor_split(ends) if any(wanted[5:8]) else (None,) * 3
        of_normed = product(weights_turned, of_given.t())
        of_hidden, of_norm = normalise_back(hidden, norm, scale, of_normed, gradient)
        every = (of_hidden, None, None, None, of_norm, *found, product(gradient, heard) if wanted[8] else None)
        return tuple(each if want else None for each, want in zip(every, wanted, strict=True))
