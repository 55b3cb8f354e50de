"""Matrix products of float32 by oneDNN, which torch ships and uses for convolutions.

MKL, which torch's own fp32 products use, knows processors of its own maker best. oneDNN is at its best where the left
operand lies row by row, which is what kernels here see to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voxtrain.model.cpu.kernel import run
from voxtrain.model.cpu.lanes import LANES
from voxtrain.model.cpu.turn_kernels import turned_matrices


def available() -> bool:
    """Whether this build of torch has oneDNN with the product that is used here."""
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[n, k] times the transpose of [m, k]: [n, m]. Either may be a transposed view; bias is [m]."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


def product_onto(left: Tensor, right: Tensor, onto: Tensor) -> Tensor:
    """The same, plus `onto` [n, m], which costs no pass of its own."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(left, onto, right, None, "add")
    return result


def turned(*matrices: Tensor) -> list[Tensor]:
    """Contiguous matrices [n, m] as contiguous [m, n]."""
    results = [matrix.new_empty(matrix.shape[1], matrix.shape[0]) for matrix in matrices]
    told: list[int | Tensor] = []
    chunks = 0
    for matrix, result in zip(matrices, results, strict=True):
        chunks += -(-matrix.shape[0] // LANES)
        told += [chunks, *matrix.shape, matrix, result]
    run(turned_matrices, chunks, *told)
    return results
