"""What stands at the head of a safetensors file, by arithmetic: its bytes are known before anything is written.

The order and the padding are the library's own (safetensors/src/tensor.rs: prepare). Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

WIDTHS = {"I64": 8, "F64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of a value by the name of its dtype, in the order in which tensors lie: wide first, for alignment."""
_ORDER = {name: place for place, name in enumerate(WIDTHS)}

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name -> (name of the dtype, shape)."""


def in_order(tensors: Tensors) -> list[str]:
    """The names in the order in which the tensors lie in the file."""
    return sorted(tensors, key=lambda name: (_ORDER[tensors[name][0]], name))


def index(tensors: Tensors) -> bytes:
    """The head of the file, with the metadata {"format": "pt"} alone; after it the tensors lie without gaps."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in in_order(tensors):
        dtype, shape = tensors[name]
        end = start + math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_bytes(tensors: Tensors) -> int:
    """The bytes of the whole file."""
    return len(index(tensors)) + sum(math.prod(shape) * WIDTHS[dtype] for dtype, shape in tensors.values())
