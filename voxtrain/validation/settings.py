"""The settings of the config group `validation`: how checkpoints are judged and which is selected. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveInt

Rule = Literal["earliest_in_tie_set", "lowest"]
Share = Annotated[float, Field(ge=0, le=1)] | None
Margin = Annotated[float, Field(ge=0)] | None


class Guards(BaseModel, frozen=True, extra="forbid"):
    """By how much a checkpoint's listening samples may be worse than the base model's; null: they may be anything."""

    failed: Share  # share of samples that are no sound at all
    silent: Share
    truncated: Share  # said in under half of the time that the text takes otherwise
    runaway: Share  # did not stop by themselves
    word_error_rate: Margin  # where it was measured, than of others of the tie set too; the interval has to lie beyond
    speaker_similarity: Margin  # likewise
    preferred: Share  # of blind votes, for another checkpoint that could be shipped; the interval has to lie beyond it


class ValidationSettings(BaseModel, frozen=True, extra="forbid"):
    """How every checkpoint is judged in a process of its own, and by which rule one is selected."""

    when: Literal["after_training", "after_each_checkpoint", "never"]
    draws: PositiveInt  # of (t, noise) for every validation row, the same for every checkpoint
    rule: Rule
    guards: Guards
    max_positions: PositiveInt  # padded positions that go through the model together
    dtype: Literal["fp32", "bf16"]  # of the weights while judging
    device: Literal["auto", "cuda", "cpu"]
