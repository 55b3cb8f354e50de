"""Counts the bytes of every tensor that is alive, by label, while a step runs: on fake tensors or on real ones.

A dispatch mode sees each operator of torch below autograd, in forward and in backward. Every storage that comes out of
one is counted from then until nothing holds it any more, in the blocks of torch's CUDA allocator. What an operator
takes and gives back inside itself is not seen, but for CUDA's attention, whose workspace is worked out (`_workspace`).

On fake tensors, what is whole numbers or truth values is computed nevertheless: where a mask says which positions go
where, shapes depend on it. Those tensors are small and are not counted.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

BLOCK_BYTES = 512
"""torch's CUDA allocator hands out multiples of this (c10/cuda/CUDACachingAllocator.cpp: kMinBlockSize)."""
COPIES = "autocast_copies"
WEIGHTS = "weights"
_ATEN = torch.ops.aten
_DEVICE_OF = torch.ops.prim.device.default
_COUNTING = {_ATEN.arange.default, _ATEN.arange.start, _ATEN.arange.start_step}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default}


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """`label` is what new storages are counted under; `now` and `peak` are bytes by label."""

    def __init__(self, fake: FakeTensorMode | None = None, *, cuda_attention: bool = False) -> None:
        """`fake`: the mode of the fake tensors, entered before this one; None counts real ones.

        cuda_attention: count what CUDA's takes for a moment.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake, self._cuda_attention = fake, cuda_attention
        self._held: dict[int, list[Any]] = {}  # by storage: [weak reference, bytes, label]
        self.label = "other"
        self.now: Counter[str] = Counter()
        self._total, self._highest = 0, -1
        self.peak: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Bytes alive."""
        return self._total

    def start_phase(self) -> None:
        """Forget the peak: the next one begins with what is alive now."""
        self._highest = -1
        self._mark(0)

    def count(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count tensors under a label from now on, those that were counted under another too."""
        for tensor in tensors:
            entry = self._entry(tensor)
            self.now[entry[2]] -= entry[1]
            self.now[label] += entry[1]
            entry[2] = label
        self._mark(0)

    def bytes_of(self, label: str) -> int:
        """Bytes alive under a label."""
        return self.now[label]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count what comes out of it."""
        kwargs = kwargs or {}
        if self._fake is None:
            return self._counted(func, args, func(*args, **kwargs))
        if func is _DEVICE_OF:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args, **kwargs)
        given = _tensors(args, kwargs)
        real = [tensor for tensor in given if not isinstance(tensor, FakeTensor)]
        if len(real) == len(given) and _is_computed(func, real, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if real:
            args, kwargs = self._made_fake(func, args, kwargs)
        return self._counted(func, args, func(*args, **kwargs))

    def _made_fake(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in _INDEXING:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        fake = self._fake
        assert fake is not None

        def made(tensor: Tensor) -> Tensor:
            return tensor if isinstance(tensor, FakeTensor) else fake.from_tensor(tensor, static_shapes=True)

        return tree_map_only(Tensor, made, (args, kwargs))

    def _counted(self, func: Any, args: Any, made: Any) -> Any:
        label = self.label
        if func is _ATEN._to_copy.default and self._label_of(args[0]) == WEIGHTS:
            label = COPIES
        for tensor in made if isinstance(made, list | tuple) else (made,):
            if isinstance(tensor, Tensor):
                self._entry(tensor, label)
        if self._cuda_attention and "flash_attention" in func.__name__ and "backward" in func.__name__:
            self._mark(_workspace(args))
        return made

    def _label_of(self, tensor: Tensor) -> str | None:
        entry = self._held.get(id(tensor.untyped_storage()))
        return None if entry is None else str(entry[2])

    def _entry(self, tensor: Tensor, label: str = "other") -> list[Any]:
        storage = tensor.untyped_storage()
        key = id(storage)
        entry = self._held.get(key)
        if entry is not None:
            return entry
        count = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        entry = [weakref.ref(storage, self._forgetting(key)), count, label]
        self._held[key] = entry
        self._total += count
        self.now[label] += count
        self._mark(0)
        return entry

    def _forgetting(self, key: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            _, count, label = self._held.pop(key)
            self._total -= count
            self.now[label] -= count

        return forget

    def _mark(self, passing: int) -> None:
        """Keep what is alive now if it is the most of this phase, with `passing` bytes of an operator's own."""
        if self._total + passing > self._highest:
            self._highest = self._total + passing
            self.peak = dict(self.now)
            if passing:
                self.peak[self.label] = self.peak.get(self.label, 0) + passing


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, Tensor)]
    return found


def _is_computed(func: Any, real: list[Tensor], kwargs: Any) -> bool:
    """Whether an operator on nothing but real tensors gives whole numbers or truth values."""
    wanted = kwargs.get("dtype")
    if isinstance(wanted, torch.dtype) and wanted.is_floating_point:
        return False
    return all(not tensor.is_floating_point() for tensor in real) if real else func in _COUNTING


def _places(index: Tensor | None) -> list[Tensor | None]:
    """The places where a mask is true, as indexing by it takes them; any other index as it is."""
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    with unset_fake_temporarily():
        return list(index.nonzero(as_tuple=True))


def _workspace(args: Any) -> int:
    """Bytes that CUDA's flash attention takes for a moment in its backward pass.

    flash_api.cpp: mha_bwd: the gradient of q summed in fp32, and a row sum, both over tokens rounded up to 128; and
    with fewer heads of keys than of queries, gradients of keys and values for each head of queries.
    """
    q, k, v = args[1], args[2], args[3]  # [N, heads, S, C]
    if q.element_size() != 2:
        return 0  # in fp32 CUDA uses another
    batch, heads, tokens, channels = q.shape
    rounded = -(-tokens // 128) * 128
    sums = batch * heads * rounded * (4 * channels + 4)
    expanded = 2 * batch * heads * k.shape[2] * v.shape[3] * q.element_size() if k.shape[1] != heads else 0
    return int(sums + expanded)
