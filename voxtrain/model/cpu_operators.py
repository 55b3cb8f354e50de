"""Faster operators for fp32 on a CPU, each with its own backward pass, equal to torch's but for rounding.

Matrix products go through oneDNN, which torch ships and uses for convolutions: MKL, which torch's own fp32 products
use, knows processors of its own maker best. The others save passes over memory. None of them lowers a precision.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

PATCHES_TOGETHER = 64
"""Attention goes through as many patches at a time: what it holds in between then stays in the processor's cache."""
TOKENS_TOGETHER = 256
"""The gate of a feed-forward block goes through as many tokens at a time, for the same reason."""


def available() -> bool:
    """Whether this build of torch has oneDNN with the product that is used here."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def embedding(layer: Any, tokens: Tensor) -> Tensor:
    """What the embedding `layer` gives for `tokens` [n]: its gradient holds only the rows that were read.

    Of 73,448 rows a step reads a few hundred: to fill the others with zeros takes longer than all norms together.
    """
    if type(layer) is not nn.Embedding or layer.max_norm is not None or layer.padding_idx is not None:
        result: Tensor = layer(tokens)
        return result
    return F.embedding(tokens, layer.weight, sparse=True)


def linear(layer: Any, values: Tensor) -> Tensor:
    """What the linear `layer` gives for `values` [..., inputs]; adapters and empty tensors go the plain way."""
    if type(layer) is not nn.Linear or values.numel() == 0:
        result: Tensor = layer(values)
        return result
    flat = _run(_Linear, values.flatten(0, -2).contiguous(), layer.weight, layer.bias)
    return flat.view(*values.shape[:-1], -1)


def feed_forward(block: Any, values: Tensor) -> Tensor:
    """What a feed-forward block of upstream gives (minicpm4/model.py: MiniCPMMLP); with adapters, the plain way."""
    layers = (block.gate_proj, block.up_proj, block.down_proj)
    plain = all(type(layer) is nn.Linear and layer.bias is None for layer in layers)
    if not plain or type(block.act_fn) is not nn.SiLU or values.numel() == 0:
        gate, up = linear(block.gate_proj, values), linear(block.up_proj, values)
        return linear(block.down_proj, block.act_fn(gate) * up)
    fed = _run(_FeedForward, values.flatten(0, -2).contiguous(), *(layer.weight for layer in layers))
    return fed.view(values.shape)


def norm(layer: Any, values: Tensor) -> Tensor:
    """What upstream's RMS norm gives (minicpm4/model.py: rms_layernorm)."""
    return _run(_RmsNorm, values, layer.weight, layer.variance_epsilon)


def turn(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of heads [N, S, heads, C]; cosine and sine [S, C] repeat their first half in the second."""
    half = heads.shape[-1] // 2
    cosine, sine = (table[:, None, :half] for table in turns)
    return _run(_Turn, heads, cosine, sine)


def patch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token of a patch hears all of it: q [N, Q, heads, C], k and v [N, S, groups, C] -> [N, Q, heads x C]."""
    return _run(_PatchAttention, q, k, v)


def _run(function: Any, *arguments: Any) -> Tensor:
    """Apply a function that has its own backward pass."""
    result: Tensor = function.apply(*arguments)
    return result


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[n, k] times the transpose of [m, k]: [n, m]. Either may be a transposed view."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


def _product_and(left: Tensor, right: Tensor, added: Tensor) -> Tensor:
    """The same, plus `added` [n, m], which costs no pass of its own."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(left, added, right, None, "add")
    return result


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return product(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        wanted = ctx.needs_input_grad
        of_values = product(gradient, weight.t()) if wanted[0] else None
        of_weight = _weight_gradient(gradient, values) if wanted[1] else None
        of_bias = gradient.sum(dim=0) if wanted[2] else None
        return of_values, of_weight, of_bias


def _weight_gradient(gradient: Tensor, values: Tensor) -> Tensor:
    """[outputs, inputs], by the faster library: measured, that is MKL where there are more outputs than inputs."""
    if gradient.shape[1] >= values.shape[1]:
        return torch.mm(gradient.t(), values)
    return product(gradient.t(), values.t())


class _FeedForward(Function):
    """The block as one: its gate stays in the cache, and the two gradients of its input meet inside a product."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        gated, upped = product(values, gate), product(values, up)
        mixed = torch.empty_like(gated)
        for part in _parts(len(values), TOKENS_TOGETHER):
            torch.ops.aten.silu.out(gated[part], out=mixed[part])
            mixed[part].mul_(upped[part])
        ctx.save_for_backward(values, gate, up, down, gated, upped, mixed)
        return product(mixed, down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, gate, up, down, gated, upped, mixed = ctx.saved_tensors
        gradient, wanted = gradient.contiguous(), ctx.needs_input_grad
        of_down = _weight_gradient(gradient, mixed) if wanted[3] else None
        of_gated = product(gradient, down.t())  # first of what is mixed
        of_upped = torch.empty_like(of_gated)
        for part in _parts(len(values), TOKENS_TOGETHER):
            torch.ops.aten.silu.out(gated[part], out=of_upped[part])
            of_upped[part].mul_(of_gated[part])
            of_gated[part].mul_(upped[part])
            torch.ops.aten.silu_backward.grad_input(of_gated[part], gated[part], grad_input=of_gated[part])
        of_values = _product_and(of_upped, up.t(), product(of_gated, gate.t())) if wanted[0] else None
        of_gate = _weight_gradient(of_gated, values) if wanted[1] else None
        of_up = _weight_gradient(of_upped, values) if wanted[2] else None
        return of_values, of_gate, of_up, of_down


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_().div_(values.shape[-1])
        scale = mean_square.add_(epsilon).rsqrt_()  # [..., 1]
        ctx.save_for_backward(values, weight, scale)
        normed: Tensor = (values * scale).mul_(weight)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, scale = ctx.saved_tensors
        normed = values * scale
        product = gradient * normed
        of_weight = product.flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None
        shared = (product @ weight).unsqueeze(-1).div_(values.shape[-1])
        of_values = (gradient * weight).sub_(normed.mul_(shared)).mul_(scale)
        return of_values, of_weight, None


class _Turn(Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(heads, cosine, sine, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradient, cosine, sine, -1), None, None


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    """Each pair (i, i + C/2) of a head turned by its angle, forwards (1) or back (-1)."""
    result = torch.empty_like(heads, memory_format=torch.contiguous_format)
    (first, second), (to_first, to_second) = heads.chunk(2, dim=-1), result.chunk(2, dim=-1)
    torch.mul(first, cosine, out=to_first)
    to_first.addcmul_(second, sine, value=-direction)
    torch.mul(second, cosine, out=to_second)
    to_second.addcmul_(first, sine, value=direction)
    return result


class _PatchAttention(Function):
    """Grouped-query attention over a few tokens. All heads of a group are rows of one small product with its keys.

    Scores lie as [keys, queries]: a softmax over a dimension of 5 or 11 that came last would use no vector unit.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heard = q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3])
        shares = []
        for part in _parts(len(q), PATCHES_TOGETHER):
            keys, values, queries = _by_group(k[part], k), _by_group(v[part], k), _by_group(q[part], k)
            scores = torch.bmm(keys, queries.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)
            share = torch.softmax(scores, dim=1)  # [n groups, S, Q heads/groups]
            _put(heard[part], torch.bmm(share.transpose(1, 2), values), k)
            shares.append(share)
        ctx.save_for_backward(q, k, v, *shares)
        return heard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *shares = ctx.saved_tensors
        of_q, of_k, of_v = (torch.empty_like(heads, memory_format=torch.contiguous_format) for heads in (q, k, v))
        for part, share in zip(_parts(len(q), PATCHES_TOGETHER), shares, strict=True):
            keys, values, queries = _by_group(k[part], k), _by_group(v[part], k), _by_group(q[part], k)
            of_heard = _by_group(gradient[part], k)
            _put(of_v[part], torch.bmm(share, of_heard), k)
            of_scores = torch.bmm(values, of_heard.transpose(1, 2)).mul_(share)
            of_scores.sub_(share * of_scores.sum(dim=1, keepdim=True)).mul_(q.shape[-1] ** -0.5)
            _put(of_q[part], torch.bmm(of_scores.transpose(1, 2), keys), k)
            _put(of_k[part], torch.bmm(of_scores, queries), k)
        return of_q, of_k, of_v


def _parts(number: int, together: int) -> list[slice]:
    return [slice(start, start + together) for start in range(0, number, together)]


def _by_group(heads: Tensor, k: Tensor) -> Tensor:
    """[n, S, ...] -> [n groups, S x (heads of a group), C]: a copy in which the heads of a group lie together."""
    groups, channels = k.shape[2:]
    return heads.reshape(*heads.shape[:2], groups, -1).transpose(1, 2).reshape(len(heads) * groups, -1, channels)


def _put(target: Tensor, by_group: Tensor, k: Tensor) -> None:
    """The way back, into `target` [n, S, ...]."""
    patches, tokens, groups = len(target), target.shape[1], k.shape[2]
    target.view(patches, tokens, groups, -1).copy_(by_group.view(patches, groups, tokens, -1).transpose(1, 2))
