"""The contract between data and model: what one optimizer step looks like.

Legend of tensor shapes, used everywhere:

    B   rows in a micro-batch
    T   positions in a row: one text token or one audio patch each (6.25 audio positions a second)
    P   latents in a patch (4 in VoxCPM 2)
    D   values in a latent (64 in VoxCPM 2)
    A   audio positions of a micro-batch, in row-major order over [B, T] (`audio_mask`: target and reference audio)
    L   loss positions of a micro-batch, in row-major order over [B, T] (`loss_mask`: target audio alone)

A row's layout is upstream's (packers.py: process_tts_data, process_tts_data_with_ref):

    text tokens, 101, audio patches, 102
    103, reference patches, 104, text tokens, 101, audio patches, 102
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AUDIO_START, AUDIO_END, REFERENCE_START, REFERENCE_END = 101, 102, 103, 104
"""The tokens that open and close target audio and reference audio."""


@dataclass(frozen=True, slots=True)
class Draws:
    """The random draws of the flow-matching loss, one of each for every loss position."""

    t: Tensor  # [L] float32, flow time in (0, 1): 0 is data, 1 is noise
    noise: Tensor  # [L, P, D] float32, standard normal
    keep_condition: Tensor  # [L] bool, False where the language models' condition is dropped

    def to(self, device: torch.device) -> Self:
        """The same draws on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a step, padded at the end to a common length, that go through the model together."""

    text_tokens: Tensor  # [B, T] int64, 0 at audio positions and padding
    audio_feats: Tensor  # [B, T, P, D] float32, 0 at text positions and padding
    text_mask: Tensor  # [B, T] bool
    audio_mask: Tensor  # [B, T] bool
    loss_mask: Tensor  # [B, T] bool
    stop_labels: Tensor  # [B, T] int64, 1 at the last target audio position of a row
    draws: Draws
    ids: tuple[str, ...]  # [B] row ids, for traces and records
    places: tuple[int, ...]  # [B] n, each row's place in the order (validation: the draw's number)

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("ids", "places")}
        return replace(
            self,
            **{name: v.to(device) if name == "draws" else v.to(device, non_blocking=True) for name, v in moved.items()},
        )


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All rows of one optimizer step, cut into micro-batches. What is learnt does not depend on the cut."""

    step: int  # 1-based: this batch makes update number `step`
    micro_batches: tuple[MicroBatch, ...]
    rows: int  # batch_size x grad_accum
    loss_positions: int  # over all rows
    positions: int  # over all rows, without padding
    padded_positions: int  # what the micro-batches hold, padding included
    audio_seconds: float  # target audio over all rows
