"""A step is the same whatever the cut, and wherever a run begins."""

from __future__ import annotations

from pathlib import Path

import torch
from data_material import DIM, PATCH, bytes_of, row_of
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.batch import MicroBatch, StepBatch
from voxtrain.data.packing import PackedRow, pack_row
from voxtrain.data.steps import StepPlan, Steps
from voxtrain.manifest.row import Row

ROWS = [row_of(Path(f"/{k}.wav"), "x" * (1 + k % 3), f"p{k}") for k in range(7)]


def pack(row: Row) -> PackedRow:
    number = int(row.audio.stem)
    return pack_row(row.id, bytes_of(row.text), torch.full((1 + number % 5, PATCH, DIM), float(number)), None)


def steps(plan: StepPlan, first_step: int = 0, total_steps: int = 6) -> Steps:
    return Steps(ROWS, pack, plan, first_step, total_steps)


def contents(batch: StepBatch) -> list[tuple[object, ...]]:
    """Each row of a step with all that it learns from, padding and cut forgotten."""
    return sorted(row for micro_batch in batch.micro_batches for row in rows_of(micro_batch))


def rows_of(batch: MicroBatch) -> list[tuple[object, ...]]:
    found = []
    of_loss = batch.loss_mask.nonzero()[:, 0]
    for k, (row_id, place) in enumerate(zip(batch.ids, batch.places, strict=True)):
        real, mine = batch.text_mask[k] | batch.audio_mask[k], of_loss == k
        parts = (
            batch.text_tokens[k][real],
            batch.audio_feats[k][real],
            batch.stop_labels[k][real],
            batch.draws.t[mine],
            batch.draws.noise[mine],
            batch.draws.keep_condition[mine],
        )
        found.append((place, row_id, *(tuple(part.flatten().tolist()) for part in parts)))
    return found


@given(st.integers(1, 4), st.integers(1, 4), st.none() | st.integers(10, 60), st.integers(0, 2**63 - 1))
@settings(max_examples=30, deadline=None)
def test_any_cut_holds_the_same_rows_places_and_draws(
    batch_size: int, grad_accum: int, max_positions: int | None, seed: int
) -> None:
    rows = batch_size * grad_accum
    cut = steps(StepPlan(seed, batch_size, grad_accum, max_positions, 0.3))
    whole = steps(StepPlan(seed, rows, 1, None, 0.3))
    for step in (1, 2, 5):
        here, there = cut.step(step), whole.step(step)
        assert contents(here) == contents(there)
        assert [place for place, *_ in contents(here)] == list(range((step - 1) * rows, step * rows))
        assert len(there.micro_batches) == 1
        for name in ("rows", "loss_positions", "positions", "audio_seconds"):
            assert getattr(here, name) == getattr(there, name), name


def test_a_run_that_goes_on_sees_the_rest_of_the_steps() -> None:
    plan = StepPlan(3, 2, 2, None, 0.1)
    whole, rest = list(steps(plan)), list(steps(plan, first_step=4))
    assert [batch.step for batch in whole] == [1, 2, 3, 4, 5, 6]
    assert [batch.step for batch in rest] == [5, 6]
    assert [contents(batch) for batch in rest] == [contents(batch) for batch in whole[4:]]
    assert list(steps(plan, first_step=6)) == []


def test_a_step_counts_what_it_holds() -> None:
    batch = steps(StepPlan(3, 2, 2, 30, 0.1)).step(1)
    real = [(one.text_mask | one.audio_mask).sum().item() for one in batch.micro_batches]
    assert batch.rows == sum(len(one.ids) for one in batch.micro_batches) == 4
    assert batch.positions == sum(real)
    assert batch.loss_positions == sum(one.loss_mask.sum().item() for one in batch.micro_batches)
    assert batch.loss_positions == sum(len(one.draws.t) for one in batch.micro_batches)
    assert batch.padded_positions == sum(one.text_tokens.numel() for one in batch.micro_batches) <= 30 * len(real)
    assert batch.audio_seconds == 4 * 1.25


def test_an_epoch_ends_within_a_step() -> None:
    """Seven rows, four a step: places run on, and each row is seen once before any is seen twice."""
    seen = [row for batch in list(steps(StepPlan(3, 2, 2, None, 0.1)))[:2] for row in contents(batch)]
    assert sorted(row_id for _, row_id, *_ in seen[:7]) == sorted(row.id for row in ROWS)
