"""The settings of the config group `schedule`: the learning rate's course over a run. Imports no torch.

A schedule is a pure function of the step, so that a resumed run needs no state of it.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, Field, NonNegativeInt

from voxtrain.fault import Fault


class WarmupCosine(BaseModel, frozen=True, extra="forbid"):
    """Linear warm-up, then half a cosine down to `final_share` of the learning rate.

    With final_share 0 this is transformers' get_cosine_schedule_with_warmup, which upstream trains with: its very
    first update has learning rate 0 when there is a warm-up.
    """

    warmup_steps: NonNegativeInt
    final_share: Annotated[float, Field(ge=0, le=1)]

    def factor(self, step: int, total_steps: int) -> float:
        """What the learning rate is multiplied by in the update that follows `step` updates."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_share + (1.0 - self.final_share) * cosine


class WarmupConstant(BaseModel, frozen=True, extra="forbid"):
    """Linear warm-up, then the full learning rate."""

    warmup_steps: NonNegativeInt

    def factor(self, step: int, total_steps: int) -> float:
        """What the learning rate is multiplied by in the update that follows `step` updates."""
        return min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0


def idle_steps(schedule: WarmupCosine | WarmupConstant, steps: int, total_steps: int) -> list[Fault]:
    """The fault of a schedule, laid over `steps`, that ends at learning rate 0 before the run of `total_steps` does."""
    if total_steps <= steps or schedule.factor(steps, steps) > 0:
        return []
    return [
        Fault(
            f"train.schedule_steps = {steps}",
            f"the schedule ends there with learning rate 0: steps {steps + 1} to {total_steps} would learn nothing",
            "for a run that goes on, train.schedule_on_resume=new lays it over all steps; for a new one, leave "
            "train.schedule_steps out, or set schedule.final_share above 0",
        )
    ]
