"""A small AudioVAE of our own, with all that upstream's packer asks for, and rows to go with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from voxtrain.manifest.row import Row

HOP, PATCH, DIM = 5, 4, 3


class SmallVae(nn.Module):
    """Each hop of samples times a fixed matrix."""

    hop_length, sample_rate = HOP, 16_000

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.randn(HOP, DIM, generator=torch.Generator().manual_seed(0))

    def encode(self, wave: Tensor, sample_rate: int) -> Tensor:
        """[B, 1, samples] -> [B, D, samples / HOP]."""
        assert sample_rate == self.sample_rate
        return (wave.reshape(len(wave), -1, HOP) @ self.matrix).transpose(1, 2)


def small_encode(wave: np.ndarray) -> Tensor:
    """[samples] -> [A, P, D], by SmallVae."""
    audio = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    audio = nn.functional.pad(audio, (0, -len(audio) % (HOP * PATCH)))
    return SmallVae().encode(audio[None, None], 16_000)[0].T.reshape(-1, PATCH, DIM).contiguous()


def bytes_of(text: str) -> list[int]:
    """A tokenizer that needs no files."""
    return [3 + byte for byte in text.encode()]


def row_of(audio: Path, text: str = "hello", parent: str = "p", ref_audio: Path | None = None) -> Row:
    """A kept row of 1.25 s."""
    return Row(
        id=f"row_{audio.stem}",
        audio_path=str(audio),
        text=text,
        line=1,
        group=parent,
        duration_s=1.25,
        parent=parent,
        speaker=None,
        ref_audio_path=None if ref_audio is None else str(ref_audio),
    )
