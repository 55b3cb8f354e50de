"""What the loss is computed with: torch's own operators, or faster ones for a CPU; equal but for rounding.

`plain` runs anywhere and in any dtype; it calls upstream's linear layers and norms as modules. `cpu` is for fp32 on a
CPU (the room `cpu`); what it cannot take, as layers with adapters, goes the plain way. `docs/performance.md` has the
measurements behind the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from voxtrain.model.layers import Read, Rows, patch_states, row_states


class _OfPatches(Protocol):
    def __call__(self, transformer: Any, tokens: Tensor, read: slice, *, recompute: bool) -> Tensor: ...


class _OfRows(Protocol):
    def __call__(self, transformer: Any, states: Tensor, rows: Rows, read: Read, *, recompute: bool) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Operators:
    """The parts of the loss that have learning weights; see layers.py for what those of whole stacks of layers give."""

    embedding: Callable[[Any, Tensor], Tensor]  # of an embedding of upstream's: tokens [n] -> [n, H]
    linear: Callable[[Any, Tensor], Tensor]  # of a linear layer of upstream's: [..., inputs] -> [..., outputs]
    patch_states: _OfPatches
    row_states: _OfRows


def operators(kernels: str, device: torch.device, dtype: torch.dtype) -> Operators:
    """The operators for `trainer.kernels` (plain | cpu): those of the CPU only where they are right, else the plain."""
    if kernels not in ("plain", "cpu"):
        raise ValueError(f"{kernels} is none of plain, cpu")
    narrow = dtype != torch.float32 or torch.is_autocast_enabled(device.type)
    if kernels == "plain" or device.type != "cpu" or narrow:
        return PLAIN
    return for_cpu() or PLAIN


def prepare(kernels: str, device: torch.device, dtype: torch.dtype) -> None:
    """Have the code of the operators at hand, which may be compiled once on a machine; says on stderr how far it is."""
    if operators(kernels, device, dtype) is not PLAIN:
        from voxtrain.model.cpu import prepare

        prepare.prepare()


@cache
def for_cpu() -> Operators | None:
    """Those of the CPU, or None where they cannot run. Imported late: Numba takes a third of a second."""
    from voxtrain.model.cpu import kernel, products, stack, tokens

    if not (kernel.available() and products.available()):
        return None
    return Operators(tokens.embedding, tokens.linear, stack.patch_states, stack.row_states)


def _called(layer: Any, values: Tensor) -> Tensor:
    result: Tensor = layer(values)
    return result


PLAIN = Operators(_called, _called, patch_states, row_states)
