"""What the driver says of the card: the whole of it, and this process. None where no NVIDIA driver answers."""

from __future__ import annotations

import os
import warnings

import torch

GIB = 2**30


def card_used_gib(device: torch.device) -> float | None:
    """GiB in use on the card by everybody."""
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetMemoryInfo(_handle(device)).used / GIB)
    except pynvml.NVMLError:
        return None


def card_free_gib(device: torch.device) -> float | None:
    """GiB that nobody uses on the card. Puts no context on it."""
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetMemoryInfo(_handle(device)).free / GIB)
    except pynvml.NVMLError:
        return None


def process_used_gib(device: torch.device) -> float | None:
    """GiB that this process holds on the card, CUDA's context included."""
    return next((gib for pid, gib in processes_gib(device) if pid == os.getpid()), None)


def processes_gib(device: torch.device) -> list[tuple[int, float]]:
    """(pid, GiB) of every process that computes on the card; empty where the driver does not tell."""
    import pynvml

    try:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(_handle(device))
    except pynvml.NVMLError:
        return []
    return [(one.pid, one.usedGpuMemory / GIB) for one in found if one.usedGpuMemory]


def _handle(device: torch.device) -> object:
    import pynvml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pynvml.nvmlInit()
        # by its UUID: NVML counts all cards, torch those that CUDA_VISIBLE_DEVICES leaves
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
