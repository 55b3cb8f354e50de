"""A task like fine-tuning, made of numbers alone: a model that has learnt one domain learns another.

A patch of audio follows from a word of the text by a table, plus noise; the audio is two positions longer than the
text. The domains differ in the table. Rows never repeat: what is learnt is the domain, and no row by heart.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from voxtrain.batch import StepBatch
from voxtrain.data.draws import training_draws
from voxtrain.data.packing import PackedRow, collate, pack_row

WORDS, FIRST_TOKEN = 16, 105
PATCH, DIM = 4, 16
"""The tiny model's."""
NOISE = 0.3
POSITION_S = 0.16
TABLE_SEED, HELD_OUT = 7000, 900_000_000
"""HELD_OUT: the number of the first held-out row; no training comes so far."""


@lru_cache
def table(domain: int) -> Tensor:
    """[WORDS, PATCH, DIM]: how each word sounds in the domain, 0 or 1."""
    first = torch.randn(WORDS, PATCH, DIM, generator=torch.Generator().manual_seed(TABLE_SEED))
    turn = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(TABLE_SEED + 1)) / DIM**0.5
    return 0.6 * first + 0.8 * (first @ turn) if domain else first


def row(domain: int, number: int) -> PackedRow:
    """Row `number` of a domain: three to six words."""
    generator = torch.Generator().manual_seed(number)
    count = int(torch.randint(3, 7, (1,), generator=generator))
    words, audio = torch.randint(0, WORDS, (count,), generator=generator), count + 2
    spoken = words[(torch.arange(audio) * count) // audio]
    latents = table(domain)[spoken] + NOISE * torch.randn(audio, PATCH, DIM, generator=generator)
    return pack_row(f"row_{number}", (FIRST_TOKEN + words).tolist(), latents, None)


def held_out(domain: int, count: int) -> list[PackedRow]:
    """Rows that no training sees."""
    return [row(domain, HELD_OUT + number) for number in range(count)]


def steps(domain: int, seed: int, count: int, rows: int, micro_batches: int) -> Iterator[StepBatch]:
    """`count` steps of `rows` new rows each, in equal micro-batches; rows and draws are functions of the seed."""
    first, each = 1_000_000 * (seed + 1), rows // micro_batches
    for step in range(1, count + 1):
        places = range((step - 1) * rows, step * rows)
        packed = [row(domain, first + place) for place in places]
        draws = [
            training_draws(seed, place, one.loss_positions, PATCH, DIM, cfg_rate=0.1)
            for place, one in zip(places, packed, strict=True)
        ]
        cuts = [slice(at, at + each) for at in range(0, rows, each)]
        micro = tuple(collate(packed[cut], draws[cut], list(places)[cut]) for cut in cuts)
        yield StepBatch(
            step=step,
            micro_batches=micro,
            rows=rows,
            loss_positions=sum(one.loss_positions for one in packed),
            positions=sum(one.positions for one in packed),
            padded_positions=sum(one.text_tokens.numel() for one in micro),
            audio_seconds=POSITION_S * sum(one.loss_positions for one in packed),
        )
