"""The settings of the config group `checkpoint`: at which steps something is written, and how. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveInt


class CheckpointPlan(BaseModel, frozen=True, extra="forbid"):
    """When numbered checkpoints and resumable states are written, and what a save may cost."""

    every: PositiveInt
    early: tuple[PositiveInt, ...]
    state_every: PositiveInt
    weights: Literal["bf16", "fp32"]
    background: bool
    buffer_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    low_disk: Literal["stop", "wait"]
    requeue: Literal["auto", "never"]

    def steps(self, total: int) -> list[int]:
        """The numbered checkpoints of `total` steps, ascending: 0 (the base), each multiple of `every`, the last."""
        early = [step for step in self.early if step < total]
        return sorted({*due_steps(self.every, total), *early})

    def state_steps(self, total: int) -> list[int]:
        """The steps after which a resumable state is written, ascending: 0, every `state_every`, the last."""
        return due_steps(self.state_every, total)

    def is_checkpoint(self, step: int, total: int) -> bool:
        """Whether a numbered checkpoint belongs to `step`, without listing all of them."""
        return is_due(step, self.every, total) or (step in self.early and step < total)

    def is_state(self, step: int, total: int) -> bool:
        """Whether a resumable state belongs to `step`."""
        return is_due(step, self.state_every, total)

    def buffer_bytes(self) -> int:
        """The host memory that a save in the background may take for copies."""
        return int(self.buffer_gib * 2**30)


def due_steps(every: int, total: int) -> list[int]:
    """0, each multiple of `every` up to `total`, and `total`, each once."""
    return [*range(0, total, every), total]


def is_due(step: int, every: int, total: int) -> bool:
    """Whether `due_steps` names `step`."""
    return 0 <= step <= total and (step % every == 0 or step == total)
