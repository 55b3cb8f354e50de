"""Kernels compiled by Numba, run by the threads that torch computes with.

A kernel is a function of one array of integers: a counter from which threads take chunks of the work one after the
other, the number of chunks, and what the kernel is told: sizes, and addresses of tensors. Numba's own threads would
stand beside torch's and take the cores from them while these wait; so kernels are handed to the OpenMP library that
torch has loaded (libgomp: GOMP_parallel is what GCC makes of `omp parallel`). No result depends on which thread took
which chunk.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, config, extending, njit, types  # type: ignore[attr-defined]
from torch import Tensor

OPTIONS: dict[str, Any] = {
    # Sums may be rearranged. What is not finite stays so: a step whose loss is not finite has to be seen.
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
}
CHUNKS_A_THREAD = 4
"""Of work that can be cut anywhere: a thread that the machine holds up takes fewer."""
FOLDER = Path(__file__).parent
COMPILED = (b"@Kernel", b"@part", b"@intrinsic")
_SETTINGS: Any = config
_KIND: Any = types.void(types.CPointer(types.int64))  # type: ignore[no-untyped-call]
_compiling = threading.Lock()


@cache
def _parallel() -> Any:
    """The function of libgomp, or None where torch has come with another library."""
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        function = ctypes.CDLL(str(library)).GOMP_parallel
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return function
    return None


def available() -> bool:
    """Whether kernels can run here."""
    return _parallel() is not None


class Kernel:
    """A function of a pointer to int64. It is compiled when it first runs, and kept on the disk for this processor."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function, self.name = function, function.__name__

    @cached_property
    def address(self) -> int:
        """Where its machine code lies."""
        with _compiling, _kept_in(kept_folder()) as kept:
            try:
                compiled = cfunc(_KIND, cache=kept, **OPTIONS)(self._function)
            except OSError:  # it was compiled, and could not be kept: the disk is full
                compiled = cfunc(_KIND, **OPTIONS)(self._function)
        self._compiled = compiled  # it owns the code
        assert compiled.address is not None
        return compiled.address


@cache
def kept_folder() -> Path | None:
    """Where compiled code is kept; None where neither this package's folder nor the user's can be written.

    Named by the source of all that is compiled: Numba itself looks at the file of a kernel alone, not at what it calls.
    """
    sources = [path.read_bytes() for path in sorted(FOLDER.glob("*.py"))]
    compiled = (source for source in sources if any(mark in source for mark in COMPILED))
    digest = sha256(b"".join(compiled)).hexdigest()[:16]
    for folder in (FOLDER / "__pycache__", Path("~/.cache/voxtrain").expanduser()):
        kept = folder / f"kernels-{digest}"
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(kept, os.W_OK):  # another user may have made it
            return kept
    return None


@contextmanager
def _kept_in(folder: Path | None) -> Iterator[bool]:
    """Have Numba keep what it compiles in `folder`; whether it may keep anything."""
    before = _SETTINGS.CACHE_DIR
    _SETTINGS.CACHE_DIR = str(folder or before)
    try:
        yield folder is not None
    finally:
        _SETTINGS.CACHE_DIR = before


def part(function: Callable[..., Any]) -> Any:
    """Something that kernels call."""
    return njit(**OPTIONS)(function)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Something that kernels call, given as the code that LLVM is to make of it."""
    return extending.intrinsic(function)


def run(kernel: Kernel, chunks: int, *told: int | Tensor) -> None:
    """Have all threads take chunks until none is left. Tensors are contiguous and told by address."""
    given = _array(len(told) + 2)(0, chunks, *[each if type(each) is int else each.data_ptr() for each in told])  # type: ignore[union-attr]
    _parallel()(kernel.address, ctypes.addressof(given), min(torch.get_num_threads(), chunks), 0)


@cache
def _array(length: int) -> Any:
    return ctypes.c_int64 * length


@cache
def number(value: float) -> Tensor:
    """A float as a kernel is told it: [1] float32. Kept, since to make one takes longer than to be told it."""
    return torch.tensor([value])


def chunks_of(work: int, least: int) -> int:
    """In how many chunks of at least `least` to cut `work`."""
    return max(1, min(CHUNKS_A_THREAD * torch.get_num_threads(), work // least))


@intrinsic
def take(_: Any, given: Any) -> Any:
    """The next chunk: what stood in the counter before this thread added 1 to it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", arguments[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(given), code


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), code


@part
def floats(address: int, rows: int, columns: int) -> Any:
    """The float32 tensor [rows, columns] at an address."""
    return carray(_pointer(address), (rows, columns), np.float32)


@part
def numbers(address: int, length: int) -> Any:
    """The float32 tensor [length] at an address."""
    return carray(_pointer(address), (length,), np.float32)


@part
def integers(address: int, length: int) -> Any:
    """The int64 tensor [length] at an address."""
    return carray(_pointer(address), (length,), np.int64)


@part
def bounds(work: int, chunks: int, chunk: int) -> tuple[int, int]:
    """Where chunk `chunk` of `work` begins and ends."""
    return work * chunk // chunks, work * (chunk + 1) // chunks
