"""Weight files of a model folder, read tensor by tensor, and the strict comparison of their names and shapes.

Upstream loads with strict=False and says nothing (voxcpm2.py: from_local): a file of another model, or half a file,
would train from random weights. Here every name must be known and every known name must be there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voxtrain.fault import Fault, InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
"""By their names in safetensors' header."""
PIECE = 2**24
"""Values that are read at a time."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightFile:
    """Names with shapes, and ways to read one tensor: as it is (on the CPU, in the file's dtype), or into another."""

    path: Path
    shapes: Shapes
    read: Callable[[str], Tensor]
    fill: Callable[[str, Tensor], object]  # of the same shape, contiguous, on any device, of any dtype

    def without(self, prefix: str) -> WeightFile:
        """The same file, as if no name began with `prefix`."""
        kept = {name: shape for name, shape in self.shapes.items() if not name.startswith(prefix)}
        return WeightFile(self.path, kept, self.read, self.fill)


@contextmanager
def open_weights(path: Path) -> Iterator[WeightFile]:
    """Open a .safetensors, .bin or .pth file. Raises InputError when it cannot be read."""
    if path.suffix == ".safetensors":
        try:
            file: Any = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise InputError(_broken(path, error)) from None
        with file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        with path.open("rb") as content:
            tensors = _Safetensors(content)
            yield WeightFile(path, shapes, tensors.read, tensors.fill)
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds for a broken file
        raise InputError(_broken(path, error)) from None
    loaded: dict[str, Tensor] = content.get("state_dict", content)
    found = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    yield WeightFile(path, found, loaded.__getitem__, lambda name, target: target.copy_(loaded[name]))


class _Safetensors:
    """Reads tensors from a safetensors file that was found sound.

    `safe_open` maps the file: what was read stays in the process's memory until the file is closed, so that a model on
    the CPU would stand there twice while it is filled.
    """

    def __init__(self, content: BufferedReader) -> None:
        (self._begin,) = struct.unpack("<Q", content.read(8))
        self._entries, self._content = json.loads(content.read(self._begin)), content
        self._begin += 8

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        entry = self._entries[name]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        self.fill(name, tensor)
        return tensor

    def fill(self, name: str, target: Tensor) -> None:
        """Put a tensor into another of its shape, a piece at a time."""
        entry, flat = self._entries[name], target.view(-1)
        dtype = DTYPES[entry["dtype"]]
        self._content.seek(self._begin + entry["data_offsets"][0])
        for start in range(0, len(flat), PIECE):
            there = flat[start : start + PIECE]
            direct = there.dtype == dtype and there.device.type == "cpu"
            piece = there if direct else torch.empty(len(there), dtype=dtype)
            into: Any = piece.detach().view(torch.uint8).numpy()  # numpy promises no Buffer to 3.11
            if self._content.readinto(into) != piece.nbytes:
                raise InputError(_broken(Path(self._content.name), EOFError(f"it ends inside {name}")))
            if not direct:
                there.copy_(piece)


def _broken(path: Path, error: Exception) -> Fault:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return Fault(str(path), f"this file cannot be read: {first}", "fetch the model again: the file is broken")


def check_names(file: WeightFile, expected: Shapes, *, may_lack: frozenset[str] = frozenset()) -> None:
    """Raise InputError, naming a few, unless the file holds exactly the `expected` names with their shapes.

    `may_lack`: buffers that the configuration gives as well.
    """
    missing = sorted(expected.keys() - file.shapes.keys() - may_lack)
    unknown = sorted(file.shapes.keys() - expected.keys())
    common = expected.keys() & file.shapes.keys()
    other = sorted(
        f"{name} is {list(file.shapes[name])} and should be {list(expected[name])}"
        for name in common
        if file.shapes[name] != expected[name]
    )
    remedy = "name the folder of a VoxCPM 2 model whose weights fit its config.json"
    faults = [
        Fault(str(file.path), f"{len(names)} tensors {what}: {_few(names)}", remedy)
        for names, what in ((missing, "are missing"), (unknown, "are unknown"), (other, "have another shape"))
        if names
    ]
    if faults:
        raise InputError(*faults)


def _few(names: list[str]) -> str:
    return "; ".join(names[:4]) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")
