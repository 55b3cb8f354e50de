"""The global norm of gradients of any dtype, dense or by row, and their clipping to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, dense or by row, fp32, of no dimension.

    torch's own for fp32. Of bf16 gradients torch would give a bf16 norm, which is wrong by up to 0.4 %, and clip by it.
    """
    gradients = [_held(gradient) for gradient in gradients]
    if all(gradient.dtype == torch.float32 for gradient in gradients):
        norm = torch.nn.utils.get_total_norm(gradients)
    else:
        each = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(each))
    return norm


def clip_divisor(max_norm: float, norm: Tensor) -> Tensor:
    """What gradients of norm `norm` are divided by to have at most `max_norm`: as torch.nn.utils.clip_grad_norm_ does.

    At least 1, which changes nothing.
    """
    return ((norm + 1e-6) / max_norm).clamp(min=1.0)


def clip(gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients of norm `norm` down to `max_norm`, in place.

    On a CPU nothing is read or written where the divisor is 1.
    """
    divisor = clip_divisor(max_norm, norm)
    if not divisor.is_cuda and float(divisor) == 1.0:
        return
    torch._foreach_div_([_held(gradient) for gradient in gradients], divisor)


def by_row(gradient: Tensor) -> Tensor:
    """A sparse gradient with each row once."""
    return gradient.coalesce() if gradient.is_sparse else gradient


def _held(gradient: Tensor) -> Tensor:
    """The numbers of a gradient; those of a sparse one with each row once (`by_row`)."""
    return gradient.values() if gradient.is_sparse else gradient
