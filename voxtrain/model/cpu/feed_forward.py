"""The second half of a decoder layer as one function with its own backward pass, on tokens in columns.

What columns.py does in pieces is done here without coming back to torch in between: after products that have filled the
processor's caches, each such return takes a tenth of a millisecond and more. Gradients of the tokens meet inside
products and the norm. Layers with adapters go in pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from voxtrain.model.cpu.columns import is_plain, normalise, normalise_back
from voxtrain.model.cpu.feed_forward_kernels import gate, gate_back
from voxtrain.model.cpu.kernel import chunks_of, run
from voxtrain.model.cpu.lanes import LANES
from voxtrain.model.cpu.products import product, product_onto, turned

NUMBERS_TOGETHER = 16384
"""Of a gate, at least: fewer are not worth a thread's coming."""


def is_taken(layer: Any, tokens: Tensor) -> bool:
    """Whether `feed_forward` is what the layer does, and can take as many tokens."""
    block = layer.mlp
    plain = not layer.use_mup and is_plain(block.gate_proj, block.up_proj, block.down_proj)
    return plain and type(block.act_fn) is nn.SiLU and tokens.shape[1] % LANES == 0


def feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    """Tokens [H, n], each plus what the feed-forward block makes of it (minicpm4/model.py: MiniCPMMLP)."""
    block, norm = layer.mlp, layer.post_attention_layernorm
    weights = (each.weight for each in (block.gate_proj, block.up_proj, block.down_proj))
    function: Any = _FeedForward.apply
    result: Tensor = function(hidden, norm.variance_epsilon, norm.weight, *weights)
    return result


class _FeedForward(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, epsilon: float, norm: Tensor, of_gate: Tensor, of_up: Tensor, of_down: Tensor
    ) -> Tensor:
        normed, scale = normalise(hidden, norm, epsilon)
        by_token = normed.t()
        gated, upped = product(of_gate, by_token), product(of_up, by_token)
        mixed = torch.empty_like(gated)
        run(gate, chunks_of(gated.numel(), NUMBERS_TOGETHER), gated.numel(), gated, upped, mixed)
        ctx.save_for_backward(hidden, normed, scale, gated, upped, mixed, norm, of_gate, of_up, of_down)
        return product_onto(of_down, mixed.t(), hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, normed, scale, gated, upped, mixed, norm, *weights = ctx.saved_tensors
        wanted, gradient = ctx.needs_input_grad, gradient.contiguous()
        gate_turned, up_turned, down_turned = turned(*weights)
        of_down = product(gradient, mixed) if wanted[5] else None
        of_mixed = product(down_turned, gradient.t())
        of_gated, of_upped = of_mixed, torch.empty_like(gated)  # each number takes the place of what it is made of
        chunks = chunks_of(gated.numel(), NUMBERS_TOGETHER)
        run(gate_back, chunks, gated.numel(), gated, upped, of_mixed, of_gated, of_upped)
        of_gate = product(of_gated, normed) if wanted[3] else None
        of_up = product(of_upped, normed) if wanted[4] else None
        of_normed = product_onto(up_turned, of_upped.t(), product(gate_turned, of_gated.t()))
        of_hidden, of_norm = normalise_back(hidden, norm, scale, of_normed, gradient)
        found = (of_hidden, None, of_norm, of_gate, of_up, of_down)
        return tuple(each if want else None for each, want in zip(found, wanted, strict=True))
