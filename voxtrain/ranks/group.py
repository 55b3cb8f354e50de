"""The processes of a run as one of them, a rank, sees the others: sums of gradients, and words exchanged.

Every position's loss carries its final weight in the step before it is added up (model/module.py), so what the ranks'
gradients give is their sum. torch's DistributedDataParallel, and Lightning's strategy around it, would divide that by
the number of ranks, wants every rank to go backward equally often, and keeps a second copy of all gradients in buckets
unless told otherwise; a plain sum after the last micro-batch wants none of it.

Gradients go over NCCL on GPUs, words always over gloo: they must not wait for what the card still does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore  # what torch.distributed gives under this name

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long a rank waits for a living one's word: rank 0 may wait for room on a disk. One that dies is noticed at once,
by the process that started it."""
NCCL_PATIENCE = timedelta(minutes=10)
"""How long a sum over GPUs may take. All ranks have come to it then, so it is the way between the cards that hangs."""
BUCKET_BYTES = 32 * 2**20
"""Small gradients are summed together, up to as many bytes; one of a quarter of that goes by itself, without a copy."""


class RankLost(Exception):
    """Another rank does not answer any more. Which one, and why, knows the process that started them."""


class Ranks(Protocol):
    """The ranks of a run."""

    rank: int  # this one; rank 0 alone writes to the run folder
    size: int

    def listen(self, hear: Callable[[str], None]) -> None:
        """Call `hear`, from a thread, with what the process that started the ranks says: why the run is to stop."""
        ...

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order; every rank must call it."""
        ...

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Put into every rank's `.grad` the sum of all ranks'; none counts as zeros where another rank has one."""
        ...


class Alone:
    """A run in one process."""

    rank, size = 0, 1

    def listen(self, hear: Callable[[str], None]) -> None:
        """Nobody speaks."""

    def gather(self, value: T) -> list[T]:
        """There is no other."""
        return [value]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """There is nothing to add."""


ALONE = Alone()


class Group:
    """One rank of several. Raises RankLost in both methods when another rank is gone."""

    def __init__(self, rank: int, size: int, gradients: dist.ProcessGroup | None) -> None:
        """gradients: the process group that they go over; words take torch's default one (see `join`)."""
        self.rank, self.size, self._gradients = rank, size, gradients
        self._words: list[str] = []
        self._hear: Callable[[str], None] = self._words.append

    def listen(self, hear: Callable[[str], None]) -> None:
        """Call `hear` with what was said already, and with what will be."""
        self._hear = hear
        for word in self._words:
            hear(word)

    def say(self, word: str) -> None:
        """Pass on a word of the process that started the ranks."""
        self._hear(word)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, pickled, in their order."""
        values: list[Any] = [None] * self.size
        _with_others(lambda: dist.all_gather_object(values, value))
        return values

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Sum in the gradients' own dtype, as one process adds up its micro-batches; the same bits on every rank."""
        known = self.gather([parameter.grad is not None for parameter in parameters])
        for parameter, *has in zip(parameters, *known, strict=True):
            if any(has) and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for bucket in buckets(gradients, BUCKET_BYTES):
            _sum(bucket, self._gradients)


def join(rank: int, size: int, store: TCPStore, accelerator: str) -> Group:
    """Become rank `rank` of `size`; returns when all are there. On GPUs rank r computes on the r-th that is visible."""
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    if accelerator != "cuda":
        return Group(rank, size, None)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    return Group(rank, size, dist.new_group(backend="nccl", timeout=NCCL_PATIENCE, device_id=device))


def buckets(tensors: Sequence[Tensor], most_bytes: int) -> Iterator[list[Tensor]]:
    """Tensors in their order, of one dtype and at most `most_bytes` together; a large or scattered one stays alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        alone = 4 * tensor.nbytes >= most_bytes or not tensor.is_contiguous()
        other = bucket and (bucket[0].dtype != tensor.dtype or bucket[0].device != tensor.device)
        if bucket and (alone or other or sum(t.nbytes for t in bucket) + tensor.nbytes > most_bytes):
            yield bucket
            bucket = []
        bucket.append(tensor)
        if alone:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _sum(bucket: list[Tensor], group: dist.ProcessGroup | None) -> None:
    if len(bucket) == 1 and bucket[0].is_contiguous():
        _with_others(lambda: dist.all_reduce(bucket[0], group=group))
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    _with_others(lambda: dist.all_reduce(flat, group=group))
    for tensor, summed in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(summed.view_as(tensor))


def _with_others(exchange: Callable[[], object]) -> None:
    try:
        exchange()
    except RuntimeError as error:  # gloo tells of a closed connection so, and NCCL by a kind of it
        raise RankLost(str(error).splitlines()[0]) from error
