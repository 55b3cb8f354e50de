"""Linear layers and embeddings on tokens that lie row by row, as everywhere outside of decoder layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from voxtrain.model.cpu.products import product


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
    function: Any = _Linear.apply
    flat: Tensor = function(values.flatten(0, -2).contiguous(), layer.weight, layer.bias)
    return flat.view(*values.shape[:-1], -1)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return product(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        gradient, wanted = gradient.contiguous(), ctx.needs_input_grad
        of_values = product(gradient, weight.t()) if wanted[0] else None
        of_weight = torch.mm(gradient.t(), values) if wanted[1] else None
        of_bias = gradient.sum(dim=0) if wanted[2] else None
        return of_values, of_weight, of_bias
