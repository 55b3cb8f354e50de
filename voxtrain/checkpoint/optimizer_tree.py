"""An optimizer's state_dict as plain JSON beside named tensors, so that nothing on disk is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def take_apart(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nest of dicts, lists, tuples, tensors and plain values as JSON, and its tensors by name.

    Tensors come without their attributes: bitsandbytes marks paged ones, and a loaded copy is not paged.
    Raises TypeError for anything else, which JSON would change.
    """
    tensors: dict[str, Tensor] = {}
    return _plain(state, "", tensors), tensors


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _plain(inner, f"{name}.{key}".strip("."), tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        parts = [_plain(inner, f"{name}.{place}", tensors) for place, inner in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": parts}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"optimizer state {name} is a {type(value).__name__}, which cannot be saved")


def put_together(plain: Any, read: Callable[[str], Tensor]) -> Any:
    """What `take_apart` took apart; `read` gives a tensor by its name. Raises ValueError for any other JSON."""
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1:
        raise ValueError(f"{len(plain)} keys where one kind was expected")
    [(kind, inside)] = plain.items()
    if kind == "tensor":
        return read(inside)
    if kind == "dict":
        return {key: put_together(inner, read) for key, inner in inside}
    if kind in ("list", "tuple"):
        parts = [put_together(inner, read) for inner in inside]
        return parts if kind == "list" else tuple(parts)
    raise ValueError(f"{kind} is no kind of optimizer state")
