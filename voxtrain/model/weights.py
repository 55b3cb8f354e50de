"""Weight files of a model folder, read tensor by tensor, and the strict comparison of their names and shapes.

Upstream loads with strict=False and says nothing (voxcpm2.py: from_local): a file of another model, or half a file,
would train from random weights. Here every name must be known and every known name must be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voxtrain.fault import Fault, InputError

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
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            yield WeightFile(path, shapes, file.get_tensor)
        return
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds for a broken file
        raise InputError(_broken(path, error)) from None
    tensors: dict[str, Tensor] = content.get("state_dict", content)
    yield WeightFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors.__getitem__)


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
