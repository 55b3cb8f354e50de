"""Safetensors files written one tensor at a time, so that host memory never holds a second copy of the model.

The library's own writer wants all tensors on the CPU, in their final dtype, at once: 4.3 GiB for bf16 weights of
VoxCPM 2 and 8.5 GiB for fp32. The bytes written here are equal to the library's (a test holds it so).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of dtypes in a safetensors header, in the order in which the library puts them: wide first, for alignment."""
_ORDER = {dtype: place for place, dtype in enumerate(NAMES)}


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is made when its turn to be written comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def lazily(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, LazyTensor]:
    """Tensors as they are to be written: floating ones in `dtype` (None: in their own), others as they are."""

    def written(tensor: Tensor) -> LazyTensor:
        cast = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return LazyTensor(tuple(tensor.shape), cast, lambda: tensor)

    return {name: written(tensor) for name, tensor in tensors.items()}


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> str:
    """Write `tensors` with the metadata {"format": "pt"} alone, and return the file's sha256.

    More metadata keys would come in an order that differs from process to process, and with it the file's bytes.
    """
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in chain([_header(tensors, names)], *(_bytes_of(tensors[name]) for name in names)):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def _header(tensors: Mapping[str, LazyTensor], names: list[str]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(lazy: LazyTensor) -> Iterator[bytes | memoryview]:
    tensor = lazy.make().detach().to(device="cpu", dtype=lazy.dtype).contiguous()
    assert tuple(tensor.shape) == lazy.shape, f"promised {lazy.shape}, made {tuple(tensor.shape)}"
    if tensor.numel():
        yield tensor.reshape(-1).view(torch.uint8).numpy().data
