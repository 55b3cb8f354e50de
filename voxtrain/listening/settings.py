"""The settings of the config group `listening`: what every checkpoint says, and how long. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, field_validator

POSITIONS_PER_S = 6.25
"""Audio positions a second: 16 kHz by a hop of 640 samples by 4 latents a position."""


class ListeningSettings(BaseModel, frozen=True, extra="forbid"):
    """The same texts with the same seeds from every checkpoint."""

    texts: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: PositiveInt  # samples of every text from every checkpoint
    max_seconds: Annotated[float, Field(ge=1, le=300)]  # a sample that has not stopped by then is called a runaway
    inference_timesteps: PositiveInt
    cfg_value: PositiveFloat
    device: Literal["auto", "cuda", "cpu"]

    @field_validator("texts")
    @classmethod
    def _can_be_said(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text.strip() for text in texts):
            raise ValueError("a text is empty: the model needs words to say")
        if len(set(texts)) < len(texts):
            raise ValueError("a text is there twice: raise listening.seeds to hear it more than once")
        return texts

    def max_positions(self) -> int:
        """`max_seconds` in audio positions."""
        return math.ceil(self.max_seconds * POSITIONS_PER_S)
