"""Rows to tensors: the layout of one row, the cut of a step into micro-batches, and the padding of each.

The layout is upstream's (packers.py: process_tts_data, process_tts_data_with_ref); a test compares every field with the
installed packer. Unlike upstream's nothing is ever cut off: the stop label stands last, and would go first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from voxtrain.batch import AUDIO_END, AUDIO_START, REFERENCE_END, REFERENCE_START, Draws, MicroBatch
from voxtrain.fault import Fault, InputError

if TYPE_CHECKING:
    from voxtrain.manifest.row import Row


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row as the model sees it (legend of shapes in batch.py)."""

    id: str
    text_tokens: Tensor  # [T] int64, 0 at audio positions
    audio_feats: Tensor  # [T, P, D] float32, 0 at text positions
    audio_mask: Tensor  # [T] bool, target and reference audio
    loss_mask: Tensor  # [T] bool, target audio
    stop_labels: Tensor  # [T] int64, 1 at the last target audio position

    @property
    def positions(self) -> int:
        """T."""
        return len(self.text_tokens)

    @property
    def loss_positions(self) -> int:
        """L of this row."""
        return int(self.loss_mask.sum())


def position_count(tokens: int, audio: int, reference: int | None) -> int:
    """T of a row of `tokens` text tokens, `audio` target patches and, where it has them, `reference` patches."""
    return tokens + audio + 2 if reference is None else tokens + audio + reference + 4


def pack_row(id: str, tokens: Sequence[int], latents: Tensor, reference: Tensor | None) -> PackedRow:
    """The layout of one row from its text tokens, its latents [A, P, D] and those of its reference audio [R, P, D].

    Raises InputError when there is no target audio: such a row has no loss position, and nothing to learn from.
    """
    audio, patch, dim = latents.shape
    if audio == 0:
        raise InputError(Fault(f"row {id}", "it has no audio, so there is nothing to learn from", "leave the row out"))
    heard = 0 if reference is None else len(reference)
    before = [] if reference is None else [REFERENCE_START, *[0] * heard, REFERENCE_END]
    text = [*before, *tokens, AUDIO_START, *[0] * audio, AUDIO_END]
    loss_mask = torch.zeros(len(text), dtype=torch.bool)
    loss_mask[-1 - audio : -1] = True
    audio_mask = loss_mask.clone()
    audio_mask[1 : 1 + heard] = True
    feats = torch.zeros(len(text), patch, dim)
    feats[loss_mask] = latents
    if reference is not None:
        feats[1 : 1 + heard] = reference
    stop_labels = torch.zeros(len(text), dtype=torch.int64)
    stop_labels[-2] = 1
    return PackedRow(id, torch.tensor(text, dtype=torch.int64), feats, audio_mask, loss_mask, stop_labels)


def packed_rows(
    rows: Sequence[Row], tokenize: Callable[[str], list[int]], latents: Callable[[Path], Tensor]
) -> list[PackedRow]:
    """The layout of rows whose latents are at hand (`LatentCache.latents`), in the same order."""
    return [
        pack_row(
            row.id,
            tokenize(row.text),
            latents(row.audio),
            None if row.ref_audio is None else latents(row.ref_audio),
        )
        for row in rows
    ]


def cut_step(lengths: Sequence[int], batch_size: int, max_positions: int | None) -> list[list[int]]:
    """Which rows of a step go through the model together: indices into `lengths` (T of each row), each once.

    Longest rows first, so that rows of like length share their padding and a step that does not fit fails at once. Each
    micro-batch holds as many rows as its longest row allows under `max_positions` padded positions; null: `batch_size`.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    cut: list[list[int]] = []
    while longest_first:
        longest = lengths[longest_first[0]]
        together = batch_size if max_positions is None else max_positions // longest
        if together < 1:
            raise ValueError(f"a row of {longest} positions does not fit under {max_positions}")
        cut.append(longest_first[:together])
        longest_first = longest_first[together:]
    return cut


def collate(rows: Sequence[PackedRow], draws: Sequence[Draws], places: Sequence[int]) -> MicroBatch:
    """One micro-batch: rows padded at the end to the longest, their draws one after the other."""
    audio_mask = _padded([row.audio_mask for row in rows])
    real = _padded([torch.ones(row.positions, dtype=torch.bool) for row in rows])
    return MicroBatch(
        text_tokens=_padded([row.text_tokens for row in rows]),
        audio_feats=_padded([row.audio_feats for row in rows]),
        text_mask=real & ~audio_mask,
        audio_mask=audio_mask,
        loss_mask=_padded([row.loss_mask for row in rows]),
        stop_labels=_padded([row.stop_labels for row in rows]),
        draws=_joined(draws),
        ids=tuple(row.id for row in rows),
        places=tuple(places),
    )


def _padded(tensors: list[Tensor]) -> Tensor:
    return pad_sequence(tensors, batch_first=True)


def _joined(draws: Sequence[Draws]) -> Draws:
    return Draws(
        t=torch.cat([one.t for one in draws]),
        noise=torch.cat([one.noise for one in draws]),
        keep_condition=torch.cat([one.keep_condition for one in draws]),
    )
