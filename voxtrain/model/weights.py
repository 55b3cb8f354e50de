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
from pathlib import Path
from typing import Any, BinaryIO

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

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightFile:
    """Names with shapes, and a way to read one tensor (on the CPU, in the file's dtype)."""

    path: Path
    shapes: Shapes
    read: Callable[[str], Tensor]

    def without(self, prefix: str) -> WeightFile:
        """The same file, as if no name began with `prefix`."""
        kept = {name: shape for name, shape in self.shapes.items() if not name.startswith(prefix)}
        return WeightFile(self.path, kept, self.read)


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
            yield WeightFile(path, shapes, _reader(content))
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds for a broken file
        raise InputError(_broken(path, error)) from None
    tensors: dict[str, Tensor] = content.get("state_dict", content)
    yield WeightFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


def _reader(content: BinaryIO) -> Callable[[str], Tensor]:
    """Read tensors from a safetensors file that was found sound, each into memory of its own.

    `safe_open` maps the file: what was read stays in the process's memory until the file is closed, so that a model on
    the CPU would stand there twice while it is filled.
    """
    (length,) = struct.unpack("<Q", content.read(8))
    entries = json.loads(content.read(length))

    def read(name: str) -> Tensor:
        entry = entries[name]
        begin, end = entry["data_offsets"]
        tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        content.seek(8 + length + begin)
        if end > begin and content.readinto(tensor.flatten().view(torch.uint8).numpy()) != end - begin:
            raise InputError(_broken(Path(content.name), EOFError(f"it ends inside {name}")))
        return tensor

    return read


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
