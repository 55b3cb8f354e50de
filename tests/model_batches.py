"""Rows for the tests of the model room, and upstream's forward on the same draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from voxtrain.batch import AUDIO_END, AUDIO_START, REFERENCE_END, REFERENCE_START, Draws, MicroBatch, StepBatch

PATCH, DIM = 4, 16


@dataclass(frozen=True)
class OneRow:
    """What one row contributes to a micro-batch, without padding."""

    tokens: Tensor  # [T]
    feats: Tensor  # [T, P, D]
    audio: Tensor  # [T] bool
    loss: Tensor  # [T] bool
    draws: Draws
    place: int


def one_row(place: int, text: int, audio: int, reference: int = 0) -> OneRow:
    """A row of random tokens and latents that is a function of `place`."""
    gen = torch.Generator().manual_seed(1000 + place)
    words = torch.randint(105, 360, (text,), generator=gen)
    opening = [REFERENCE_START, *[0] * reference, REFERENCE_END] if reference else []
    tokens = torch.tensor([*opening, *words.tolist(), AUDIO_START, *[0] * audio, AUDIO_END])
    loss = torch.zeros(len(tokens), dtype=torch.bool)
    loss[-1 - audio : -1] = True
    heard = loss.clone()
    heard[1 : 1 + reference] = reference > 0
    feats = torch.zeros(len(tokens), PATCH, DIM)
    feats[heard] = torch.randn(int(heard.sum()), PATCH, DIM, generator=gen).cumsum(1) * 0.5
    t = torch.sigmoid(torch.randn(audio, generator=gen) * 1.0 + -0.4)  # unified_cfm.py: sample_r_t, to the last bit
    noise = torch.randn(audio, PATCH, DIM, generator=gen)
    keep = torch.rand(audio, generator=gen) > 0.2
    return OneRow(tokens, feats, heard, loss, Draws(t, noise, keep), place)


def micro_batch(rows: list[OneRow]) -> MicroBatch:
    """Rows padded at the end to their longest."""
    length = max(len(row.tokens) for row in rows)

    def padded(values: list[Tensor]) -> Tensor:
        return torch.stack([torch.cat([v, v.new_zeros(length - len(v), *v.shape[1:])]) for v in values])

    stop = [torch.zeros_like(row.tokens) for row in rows]
    for labels in stop:
        labels[-2] = 1
    return MicroBatch(
        text_tokens=padded([row.tokens for row in rows]),
        audio_feats=padded([row.feats for row in rows]),
        text_mask=padded([~row.audio for row in rows]),
        audio_mask=padded([row.audio for row in rows]),
        loss_mask=padded([row.loss for row in rows]),
        stop_labels=padded(stop),
        draws=Draws(*(torch.cat([getattr(row.draws, f) for row in rows]) for f in ("t", "noise", "keep_condition"))),
        ids=tuple(f"row{row.place}" for row in rows),
        places=tuple(row.place for row in rows),
    )


def step_batch(step: int, cut: list[list[OneRow]]) -> StepBatch:
    """One optimizer step whose rows are cut into micro-batches as given."""
    micro = tuple(micro_batch(rows) for rows in cut)
    rows = [row for part in cut for row in part]
    return StepBatch(
        step=step,
        micro_batches=micro,
        rows=len(rows),
        loss_positions=sum(int(row.loss.sum()) for row in rows),
        positions=sum(len(row.tokens) for row in rows),
        padded_positions=sum(part.text_tokens.numel() for part in micro),
        audio_seconds=sum(int(row.loss.sum()) for row in rows) * 0.16,
    )


def upstream_losses(model: Any, batch: MicroBatch) -> dict[str, Tensor]:
    """Upstream's own forward with the batch's draws in place of its random numbers, in the order in which it draws.

    unified_cfm.py, compute_loss and sample_r_t: rand (condition dropout), rand and randn_like (noisy conditions, at
    scale zero), randn and randn (r and t before the sigmoid), rand (r unlike t: never), randn_like (noise).
    """
    everywhere = batch.loss_mask.flatten()  # [B*T]
    count = len(everywhere)
    dtype = model.stop_head.weight.dtype
    s_t, keep = torch.zeros(count, dtype=dtype), torch.ones(count)
    s_t[everywhere] = (torch.logit(batch.draws.t.double()) + 0.4).to(dtype)
    keep[everywhere] = batch.draws.keep_condition.float()
    noise = torch.randn(count, DIM, PATCH, dtype=dtype)
    noise[everywhere] = batch.draws.noise.transpose(1, 2).to(dtype)
    never, unused = torch.ones(count), torch.zeros(count, DIM, PATCH, dtype=dtype)
    with (
        mock.patch.object(torch, "rand", side_effect=[keep, torch.zeros(count), never]) as rand,
        mock.patch.object(torch, "randn", side_effect=[torch.zeros(count, dtype=dtype), s_t]) as randn,
        mock.patch.object(torch, "randn_like", side_effect=[unused, noise]) as randn_like,
    ):
        losses: dict[str, Tensor] = model(
            batch.text_tokens,
            batch.text_mask.int(),
            batch.audio_feats,
            batch.audio_mask.int(),
            batch.loss_mask.int(),
            torch.zeros_like(batch.text_tokens),
            batch.stop_labels,
        )
    assert [draw.call_count for draw in (rand, randn, randn_like)] == [3, 2, 2]
    return losses
