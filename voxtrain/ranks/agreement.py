"""Whether all ranks hold the same weights: each makes the same updates by itself, nothing else keeps them equal.

They would part where one card computes another result than the next from the same gradients: other GPUs, other
drivers, a broken one. Found at a save, before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from voxtrain.fault import RunFailed
from voxtrain.ranks.group import Ranks

PIECE = 2**22
"""Values worked on at a time: at most 64 MiB of workspace."""


def check_equal_weights(ranks: Ranks, tensors: Mapping[str, Tensor], step: int) -> None:
    """Raise RunFailed where the ranks' `tensors` after `step` updates differ in one bit. Every rank must call it."""
    if ranks.size == 1:
        return
    found = ranks.gather(digest(tensors))
    if len(set(found)) == 1:
        return
    told = ", ".join(f"process {rank}: {value[:12]}" for rank, value in enumerate(found))
    raise RunFailed(
        f"After step {step} the processes no longer hold the same weights ({told}), so nothing of it was saved.\n"
        "All devices must be of one model and driver; a broken one shows so too. Go on from the last state with "
        "trainer.devices=1, or with the devices that agree (CUDA_VISIBLE_DEVICES)."
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of names, shapes and bits, made where the tensors are: a change of any one bit changes it."""
    names = sorted(tensors)
    sums = [value for name in names for value in _sums(tensors[name])]
    figures = torch.stack(sums).tolist() if sums else []
    told = [(name, tuple(tensors[name].shape), str(tensors[name].dtype)) for name in names]
    return hashlib.sha256(repr((told, figures)).encode()).hexdigest()


def _sums(tensor: Tensor) -> Iterator[Tensor]:
    """The sum of all bits as integers, and the same with odd weights by place: int64, which wraps around."""
    flat = tensor.detach().reshape(-1)
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    plain = torch.zeros((), dtype=torch.int64, device=flat.device)
    placed = torch.zeros_like(plain)
    for start in range(0, len(flat), PIECE):
        bits = flat[start : start + PIECE].view(width).to(torch.int64)
        weights = torch.arange(start, start + len(bits), device=flat.device) * 2 + 1
        plain += bits.sum()
        placed += (bits * weights).sum()
    yield plain
    yield placed
