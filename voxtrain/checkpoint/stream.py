"""Safetensors files written one piece of a tensor at a time, so that host memory never holds a second copy of a model.

The library's own writer wants all tensors on the CPU, in their final dtype, at once: 4.3 GiB for bf16 weights of
VoxCPM 2 and 8.5 GiB for fp32. The bytes written here are equal to the library's (a test holds it so).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from voxtrain.checkpoint.digests import ALGORITHMS, NUMBERED
from voxtrain.model.weights_index import in_order, index

NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in a safetensors header."""
DTYPES = {name: dtype for dtype, name in NAMES.items()}
"""The other way round."""
PIECE_BYTES = 2**24
"""What of a tensor is on its way to the file at a time."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is looked at when its turn to be written comes, and only while it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # in the file
    reading: Callable[[], AbstractContextManager[Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def lazily(tensors: Mapping[str, Tensor | LazyTensor], dtype: torch.dtype | None) -> dict[str, LazyTensor]:
    """Tensors as they are to be written: floating ones in `dtype` (None: in their own), others as they are."""
    return {name: _in_dtype(tensor, dtype) for name, tensor in tensors.items()}


def _in_dtype(tensor: Tensor | LazyTensor, dtype: torch.dtype | None) -> LazyTensor:
    cast = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
    if isinstance(tensor, LazyTensor):
        return replace(tensor, dtype=cast)
    return LazyTensor(tuple(tensor.shape), cast, lambda: nullcontext(tensor))


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor], algorithm: str = NUMBERED) -> str:
    """Write `tensors` with the metadata {"format": "pt"} alone, and return the file's checksum.

    More metadata keys would come in an order that differs from process to process, and with it the file's bytes.
    """
    described = {name: (NAMES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    digest = ALGORITHMS[algorithm]()
    with path.open("wb") as file:
        for piece in chain([index(described)], *(_bytes_of(tensors[name]) for name in in_order(described))):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def _bytes_of(lazy: LazyTensor) -> Iterator[bytes | memoryview]:
    with lazy.reading() as tensor:
        assert tuple(tensor.shape) == lazy.shape, f"promised {lazy.shape}, made {tuple(tensor.shape)}"
        flat = tensor.detach().reshape(-1)  # a copy only where it is not contiguous
        step = PIECE_BYTES // max(flat.dtype.itemsize, lazy.dtype.itemsize)
        for start in range(0, flat.numel(), step):
            # first to the host and then to the file's dtype: the card gets no copy of anything
            piece = flat[start : start + step].to("cpu").to(lazy.dtype)
            yield piece.view(torch.uint8).numpy().data
