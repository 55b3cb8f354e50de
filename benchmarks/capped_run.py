"""A run on a card that is larger than the one to be shown: what torch may take is capped, as if the card ended there.

    python -m benchmarks.capped_run CARD OVERRIDES...

CARD is said as to `python -m voxtrain.memory --card`. Torch's allocator gets the card less what lies outside it now,
CUDA's context; paged state lies outside it too, and is counted by NVML alone. On the CPU nothing is capped.
"""

from __future__ import annotations

import sys

import torch

from voxtrain.__main__ import single
from voxtrain.door import tell
from voxtrain.fault import InputError
from voxtrain.memory.card import size_gib
from voxtrain.memory.nvml import card_used_gib

GIB = 2**30


def main(arguments: list[str]) -> int:
    """Cap, and go through voxtrain's front door. Returns its exit code."""
    card, *overrides = arguments
    if torch.cuda.is_available():
        cap(size_gib(card), torch.device("cuda", 0))
    try:
        return single(overrides)
    except InputError as error:
        return tell(error)


def cap(card_gib: float, device: torch.device) -> None:
    """Let torch take no more than a card of `card_gib` would leave it. Raises ValueError where the card is smaller."""
    torch.zeros(1, device=device)
    used_gib = card_used_gib(device) or 0.0
    whole_gib = torch.cuda.get_device_properties(device).total_memory / GIB
    allowed_gib = card_gib - used_gib
    if not 0 < allowed_gib <= whole_gib:
        raise ValueError(f"of {card_gib:.1f} GiB {used_gib:.1f} are taken, and this card has {whole_gib:.1f}")
    torch.cuda.set_per_process_memory_fraction(allowed_gib / whole_gib, device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
