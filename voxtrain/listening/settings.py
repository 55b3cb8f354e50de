"""The settings of the config group `listening`: what every checkpoint says, how long, and by what it is scored.

Imports no torch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from voxtrain.fault import Fault
from voxtrain.manifest.recogniser import Recogniser, load_recogniser

POSITIONS_PER_S = 6.25
"""Audio positions a second: 16 kHz by a hop of 640 samples by 4 latents a position."""


class WordErrors(BaseModel, frozen=True, extra="forbid"):
    """A speech recogniser that writes down what each sample says: word and character error rate."""

    model: Annotated[str, Field(min_length=1)]  # a name that faster-whisper knows, or a folder
    device: Literal["auto", "cuda", "cpu"]
    compute_type: str
    language: str | None  # null: the recogniser guesses for each sample

    def recogniser(self) -> Recogniser:
        """Load it. Raises InputError where it is not installed or cannot be loaded."""
        return load_recogniser(self.model, self.device, self.compute_type, self.language, "listening.word_errors")


class Similarity(BaseModel, frozen=True, extra="forbid"):
    """A speaker-embedding model: how much each sample sounds like the training speaker."""

    model: Annotated[str, Field(min_length=1)]  # `resemblyzer`, or an x-vector model for transformers: name or folder
    device: Literal["auto", "cuda", "cpu"]
    clips: PositiveInt  # training clips that stand for a speaker


class ListeningSettings(BaseModel, frozen=True, extra="forbid"):
    """The same texts with the same seeds from every checkpoint."""

    texts: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: PositiveInt  # samples of every text from every checkpoint
    reference: Path | None  # a voice in which every text is said as well
    ceiling: NonNegativeInt  # recordings that go through the AudioVAE and back
    max_seconds: Annotated[float, Field(ge=1, le=300)]  # a sample that has not stopped by then is called a runaway
    inference_timesteps: PositiveInt
    cfg_value: PositiveFloat
    device: Literal["auto", "cuda", "cpu"]
    word_errors: WordErrors | None
    similarity: Similarity | None

    @field_validator("texts")
    @classmethod
    def _can_be_said(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text.strip() for text in texts):
            raise ValueError("a text is empty: the model needs words to say")
        if len(set(texts)) < len(texts):
            raise ValueError("a text is there twice: raise listening.seeds to hear it more than once")
        return texts

    def reference_faults(self) -> list[Fault]:
        """What is wrong with the reference audio; nothing where none is named."""
        if self.reference is None or self.reference.is_file():
            return []
        remedy = "name an audio file, or listening.reference=null"
        return [Fault(f"listening.reference = {self.reference}", "there is no such file", remedy)]

    def max_positions(self) -> int:
        """`max_seconds` in audio positions."""
        return math.ceil(self.max_seconds * POSITIONS_PER_S)
