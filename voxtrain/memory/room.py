"""Waiting for memory on a card that others use too, before anything is put there."""

from __future__ import annotations

import sys
import time

import torch

from voxtrain.memory.nvml import card_free_gib

POLL_S = 5.0


def wait_for_room(device: torch.device, gib: float, otherwise: str) -> None:
    """Return when `gib` are free on the card; at once on a CPU, or where the driver does not tell.

    otherwise: what to do instead of waiting; it is told when waiting begins.
    """
    if device.type != "cuda":
        return
    free = card_free_gib(device)
    if free is None or free >= gib:
        return
    print(f"Waiting for {gib:.1f} GiB on the card, of which {free:.1f} are free. {otherwise}", file=sys.stderr)
    while free is not None and free < gib:
        time.sleep(POLL_S)
        free = card_free_gib(device)
