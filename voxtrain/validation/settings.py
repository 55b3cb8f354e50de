"""The settings of the config group `validation`: how checkpoints are judged and which is selected. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, PositiveInt, field_validator


class ValidationSettings(BaseModel, frozen=True, extra="forbid"):
    """How every checkpoint is judged in a process of its own, and by which rule one is selected."""

    when: Literal["after_training", "after_each_checkpoint", "never"]
    draws: PositiveInt  # of (t, noise) for every validation row, the same for every checkpoint
    rule: Literal["lowest"]
    max_positions: PositiveInt  # padded positions that go through the model together
    dtype: Literal["fp32", "bf16"]  # of the weights while judging
    device: Literal["auto", "cuda", "cpu"]

    @field_validator("when")
    @classmethod
    def _is_there_yet(cls, value: str) -> str:
        if value == "after_each_checkpoint":
            raise ValueError(
                "judging while training goes on is not there yet; choose after_training, and run "
                "`python -m voxtrain.validation RUN` beside the run whenever you like"
            )
        return value
