"""The loops that take turns: upstream's, and from it to ours one idea at a time. All train the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.allocator import as_by_default
from benchmarks.clock import Clock
from benchmarks.floor import Floor
from benchmarks.our_loop import Choices, OurData, OurLoop
from benchmarks.upstream_loop import UpstreamLoop
from voxtrain.manifest.row import Row
from voxtrain.memory.host import keep_freed_memory

SETTLING_STEPS = 2
"""After a change of the allocator the first two steps were slower than those that follow, by 4 % on average."""


@dataclass
class Contenders:
    """Steps by name: the first is upstream's, the last ours."""

    upstream: UpstreamLoop
    plain: OurLoop  # packed, with plain operators
    best: OurLoop  # ours
    data: OurData
    steps: dict[str, Callable[[], None]]
    on_cpu: bool
    floor: Floor | None = None

    @property
    def first(self) -> str:
        """Upstream's loop."""
        return next(iter(self.steps))

    @property
    def ours(self) -> str:
        """Our step."""
        return list(self.steps)[-1]

    def settle(self, name: str) -> None:
        """Have the loop at its steady state: freed memory is treated as in its own runs, by steps that do not count.

        Only where the loop before it in turn has another allocator, which has left its memory in another state.
        """
        if not self.on_cpu or name not in (self.first, self.ours):
            return
        seconds = dict(self.upstream.seconds)
        if name == self.ours:
            keep_freed_memory()
        else:
            as_by_default()
        for _ in range(SETTLING_STEPS):
            self.steps[name]()
        self.upstream.seconds.clear()
        self.upstream.seconds.update(seconds)

    def upstream_parts(self, steps: int) -> dict[str, float]:
        """Seconds of one step of upstream's loop by part, the mean of those that counted."""
        return {part: spent / steps for part, spent in self.upstream.seconds.items()}


def contenders(
    folder: Path, architecture: dict[str, Any], rows: Sequence[Row], cache: Path, clock: Clock
) -> Contenders:
    """Load the model once, encode the rows once, and set up every loop over them."""
    data = OurData(folder, architecture, rows, cache)
    upstream = UpstreamLoop(folder, rows, clock)

    def ours(*, packed: bool, one_pass: bool, kernels: str) -> OurLoop:
        return OurLoop(upstream.model, data, Choices(packed, one_pass, kernels), clock.device)

    if clock.device.type == "cuda":  # the update is one pass there already, and memory holds no third state
        loop = ours(packed=True, one_pass=True, kernels="plain")
        alone = ours(packed=False, one_pass=True, kernels="plain")
        alone.optimizer = loop.optimizer
        best, plain = loop, loop
        rungs = {"+ masked positions left out": alone.step, "+ rows packed together (ours)": loop.step}
    else:
        first = ours(packed=False, one_pass=False, kernels="plain")
        plain = ours(packed=True, one_pass=True, kernels="plain")
        best = ours(packed=True, one_pass=True, kernels="cpu")
        together = ours(packed=True, one_pass=False, kernels="plain")
        together.optimizer, best.optimizer = first.optimizer, plain.optimizer
        rungs = {
            "+ masked positions left out": first.step,
            "+ rows packed together": together.step,
            "+ weights updated in one pass": plain.step,
            "+ operators for the CPU, memory kept (ours)": best.step,
        }
    steps = {"upstream's loop": upstream.step, "+ latents from the cache": upstream.step_with_latents_at_hand, **rungs}
    return Contenders(upstream, plain, best, data, steps, on_cpu=clock.device.type == "cpu")
