"""The most memory that this process has held since training began, as one number for the log.

memory/ has the exact accounts; this is their peak without NVML, which is too slow to ask at every step.
"""

from __future__ import annotations

import torch

from voxtrain.memory.watch import resident_peak_gib


def peak_gib(device: torch.device) -> float:
    """GiB: on a GPU what torch's allocator reserved at its highest, else the process's highest resident memory.

    Paged optimizer state lies outside torch's allocator and is not in this number; memory.json has it.
    """
    return torch.cuda.max_memory_reserved(device) / 2**30 if device.type == "cuda" else resident_peak_gib()
