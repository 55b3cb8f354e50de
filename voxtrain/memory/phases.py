"""What a run holds at its highest in each phase of its steps, so that each can stand beside its prediction.

On CUDA it is the peak of torch's allocator within the phase; paged optimizer state and CUDA's context lie outside it.
On the CPU there is no such account: it is the process's resident memory where the phase ends.
"""

from __future__ import annotations

import torch

from voxtrain.memory.plan import GIB


class PhasePeaks:
    """Told where phases end; `gib` is the most that each held, over all its times, under the names of plan.PHASES."""

    def __init__(self, device: torch.device) -> None:
        """From here on the first phase is under way."""
        self.gib: dict[str, float] = {}
        self.allocated_gib = self.reserved_gib = 0.0  # on CUDA the highest of all, in phases and between them
        self._device = device
        self._forget()

    def ends(self, phase: str) -> None:
        """The phase that was under way is over, and another one begins."""
        self.gib[phase] = max(self.gib.get(phase, 0.0), self._held_gib())
        self._forget()

    def _held_gib(self) -> float:
        if self._device.type != "cuda":
            import psutil

            return float(psutil.Process().memory_info().rss / GIB)
        held = torch.cuda.max_memory_allocated(self._device) / GIB
        self.allocated_gib = max(self.allocated_gib, held)
        self.reserved_gib = max(self.reserved_gib, torch.cuda.max_memory_reserved(self._device) / GIB)
        return held

    def _forget(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
