"""The tensors of an optimizer's state under each memory stack, as a resumable state holds them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from voxtrain.memory.stack import MemoryStack
from voxtrain.memory.widths import BLOCK, SMALLEST

Named = tuple[str, tuple[str, tuple[int, ...]]]
FORMAT_VALUES = 256
"""Values that a byte can mean: bitsandbytes saves them twice beside every tensor of 8-bit moments."""


def moment_tensors(
    shapes: Sequence[tuple[int, ...]], stack: MemoryStack, *, adapters: bool
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape) after the first update of tensors that learn in this order.

    dtypes as safetensors names them. adapters: they learn in fp32, whatever the stack says of weights.
    """
    return dict(one for number, shape in enumerate(shapes) for one in _of(f"state.{number}", shape, stack, adapters))


def _of(name: str, shape: tuple[int, ...], stack: MemoryStack, adapters: bool) -> Iterator[Named]:
    narrow = stack.weights == "bf16" and not adapters
    values = (math.prod(shape),)
    if narrow or stack.on_host():
        yield from _of_narrow(name, values, stack)
    elif stack.state == "fp32":
        yield f"{name}.step", ("F32", ())
        yield f"{name}.exp_avg", ("F32", shape)
        yield f"{name}.exp_avg_sq", ("F32", shape)
    else:
        yield from _of_bitsandbytes(f"{name}.__bnb_optimizer_quant_state__", shape, values[0])


def _of_narrow(name: str, values: tuple[int], stack: MemoryStack) -> Iterator[Named]:
    """optim/narrow_adamw.py: all flat."""
    if stack.on_host():
        yield f"{name}.master", ("F32", values)
    elif stack.rounding == "kahan":
        yield f"{name}.remainder", ("I16", values)
    if not stack.state.endswith("8bit") or values[0] < SMALLEST:
        yield f"{name}.exp_avg", ("F32", values)
        yield f"{name}.exp_avg_sq", ("F32", values)
        return
    for moment in (1, 2):
        yield f"{name}.state{moment}", ("U8", values)
        yield f"{name}.absmax{moment}", ("F32", (_blocks(values[0]),))


def _of_bitsandbytes(name: str, shape: tuple[int, ...], values: int) -> Iterator[Named]:
    """Bitsandbytes' optim/optimizer.py: init_state and state_dict."""
    large = values >= SMALLEST
    for moment in (1, 2):
        yield f"{name}.state{moment}", ("U8" if large else "F32", shape)
        if large:
            yield f"{name}.qmap{moment}", ("F32", (FORMAT_VALUES,))
            yield f"{name}.absmax{moment}", ("F32", (_blocks(values),))


def _blocks(values: int) -> int:
    return -(-values // BLOCK)
