"""The pieces of a decoder layer on tokens that lie in columns, [channels, tokens], each with its own backward pass.

In columns every product of a layer, forward and backward, has its left operand row by row, as oneDNN likes it;
attention finds the numbers of a channel side by side, for as many tokens as a vector unit takes; and a norm sums
without ever adding up the parts of a vector. What goes past a part, as tokens do around a block, is added inside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from voxtrain.model.cpu.kernel import number, run
from voxtrain.model.cpu.norm_kernels import TOKENS_TOGETHER, norm, norm_back
from voxtrain.model.cpu.products import product, product_onto, turned


def is_plain(*layers: Any) -> bool:
    """Whether these are linear layers of torch itself, without bias."""
    return all(type(layer) is nn.Linear and layer.bias is None for layer in layers)


def linear(layer: Any, values: Tensor) -> Tensor:
    """[inputs, n] -> [outputs, n]; what is no plain layer is called as torch's modules are."""
    if not is_plain(layer):
        result: Tensor = layer(values.t()).t().contiguous()
        return result
    return _applied(_Linear, values, layer.weight, None)


def linear_onto(layer: Any, values: Tensor, onto: Tensor, scale: float) -> Tensor:
    """What the layer gives, times scale, plus onto: [outputs, n]."""
    if scale != 1 or not is_plain(layer):
        return onto + linear(layer, values) * scale
    return _applied(_Linear, values, layer.weight, onto)


def normed_beside(layer: Any, values: Tensor) -> tuple[Tensor, Tensor]:
    """The values themselves, to go past what comes, and what upstream's RMS norm makes of them (rms_layernorm)."""
    function: Any = _Norm.apply
    past, normed = function(values, layer.weight, layer.variance_epsilon)
    return past, normed


def heads(block: Any, values: Tensor, asking: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of the tokens that ask [heads x channels, asking], keys above values of all [2 x groups x channels, n].

    asking: `values` themselves where all ask.
    """
    layers = block.q_proj, block.k_proj, block.v_proj
    if not is_plain(*layers):
        return linear(layers[0], asking), torch.cat((linear(layers[1], values), linear(layers[2], values)))
    function: Any = _Heads.apply
    q, kv = function(values, None if asking is values else asking, *(layer.weight for layer in layers))
    return q, kv


def feed_forward_onto(block: Any, values: Tensor, onto: Tensor, scale: float) -> Tensor:
    """What a feed-forward block of upstream gives, times scale, plus onto (minicpm4/model.py: MiniCPMMLP)."""
    mixed = block.act_fn(linear(block.gate_proj, values)) * linear(block.up_proj, values)
    return linear_onto(block.down_proj, mixed, onto, scale)


def _applied(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, onto: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return product(weight, values.t()) if onto is None else product_onto(weight, values.t(), onto)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        gradient, wanted = gradient.contiguous(), ctx.needs_input_grad
        of_values = product(turned(weight)[0], gradient.t()) if wanted[0] else None
        return of_values, product(gradient, values) if wanted[1] else None, gradient if wanted[2] else None


class _Heads(Function):
    """The gradients of values meet inside a product."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, asking: Tensor | None, of_q: Tensor, of_k: Tensor, of_v: Tensor
    ) -> tuple[Tensor, Tensor]:
        of_kv = torch.cat((of_k, of_v))
        ctx.save_for_backward(values, asking, of_q, of_kv)
        return product(of_q, (values if asking is None else asking).t()), product(of_kv, values.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_queries: Tensor, of_keys: Tensor) -> tuple[Tensor | None, ...]:
        values, asking, q, kv = ctx.saved_tensors
        of_queries, of_keys, wanted = of_queries.contiguous(), of_keys.contiguous(), ctx.needs_input_grad
        q_turned, kv_turned = turned(q, kv)
        of_values = product(kv_turned, of_keys.t()) if wanted[0] else None
        of_asking = product(q_turned, of_queries.t()) if asking is not None and wanted[1] else None
        if asking is None and of_values is not None:
            of_values = product_onto(q_turned, of_queries.t(), of_values)
        of_q = product(of_queries, values if asking is None else asking) if wanted[2] else None
        of_kv = product(of_keys, values) if wanted[3] or wanted[4] else None
        of_k, of_v = (None, None) if of_kv is None else of_kv.chunk(2)
        return of_values, of_asking, of_q, of_k if wanted[3] else None, of_v if wanted[4] else None


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        normed, scale = normalise(values, weight, epsilon)
        ctx.save_for_backward(values, weight, scale)
        ctx.set_materialize_grads(False)
        return values, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, past: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        values, weight, scale = ctx.saved_tensors
        if gradient is None:
            return past, None, None
        past = None if past is None else past.contiguous()
        of_values, of_weight = normalise_back(values, weight, scale, gradient.contiguous(), past)
        return of_values, of_weight if ctx.needs_input_grad[1] else None, None


def normalise(values: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMS norm: what is normed, like values, and the scale of each token."""
    width, tokens = values.shape
    normed, scale = torch.empty_like(values), values.new_empty(tokens)
    run(norm, _chunks(tokens), width, tokens, values, weight, number(epsilon), normed, scale)
    return normed, scale


def normalise_back(
    values: Tensor, weight: Tensor, scale: Tensor, gradient: Tensor, past: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of values and weight, from those of what is normed and of the values that went past the norm."""
    width, tokens = values.shape
    of_values, of_weight = torch.empty_like(values), values.new_empty(_chunks(tokens), width)
    given, found = (values, weight, scale, gradient, 0 if past is None else past), (of_values, of_weight)
    run(norm_back, _chunks(tokens), width, tokens, *given, *found)
    return of_values, of_weight.sum(dim=0)


def _chunks(tokens: int) -> int:
    """Not by threads: the sums over tokens are then the same with any number of them."""
    return -(-tokens // TOKENS_TOGETHER)
