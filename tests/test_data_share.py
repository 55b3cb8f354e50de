"""The rows of a step, shared by ranks: every row once, nobody idle, nobody with much more than another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_steps import ROWS, contents, pack

from voxtrain.data.packing import cut_step
from voxtrain.data.share import cut_shares, share_rows
from voxtrain.data.steps import StepPlan, Steps

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)
RANKS = st.integers(1, 9)


@given(LENGTHS, RANKS)
def test_every_row_has_one_rank_and_shares_are_balanced(lengths: list[int], ranks: int) -> None:
    shares = share_rows(lengths, ranks)
    assert sorted(row for share in shares for row in share) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths), "moving one row would make it even"
    assert min(len(share) for share in shares) >= 1 or len(lengths) < ranks, "a rank stands idle beside one with two"
    assert lengths.index(max(lengths)) in shares[0], "rank 0 measures memory for all of them"
    assert shares == share_rows(lengths, ranks)


@given(LENGTHS, RANKS, st.integers(1, 5), st.none() | st.integers(300, 900))
def test_every_rank_cuts_its_share_under_the_same_limit(
    lengths: list[int], ranks: int, batch_size: int, most: int | None
) -> None:
    cuts = cut_shares(lengths, ranks, batch_size, most)
    assert len(cuts) == ranks
    assert sorted(row for cut in cuts for part in cut for row in part) == list(range(len(lengths)))
    for part in (part for cut in cuts for part in cut):
        assert len(part) <= batch_size if most is None else len(part) * max(lengths[row] for row in part) <= most
    assert cut_shares(lengths, 1, batch_size, most) == [cut_step(lengths, batch_size, most)]


@pytest.mark.slow
@given(st.integers(1, 3), st.integers(1, 4), st.none() | st.integers(10, 60), st.integers(2, 5))
def test_the_ranks_steps_together_are_the_step_of_one_process(
    batch_size: int, grad_accum: int, most: int | None, ranks: int
) -> None:
    def step(rank: int, ranks: int):
        plan = StepPlan(7, batch_size, grad_accum, most, 0.3, rank, ranks)
        return Steps(ROWS, pack, plan, 0, 6).step(3)

    whole, parts = step(0, 1), [step(rank, ranks) for rank in range(ranks)]
    assert sorted(row for part in parts for row in contents(part)) == contents(whole)
    for name in ("rows", "loss_positions", "positions", "audio_seconds"):
        assert {getattr(part, name) for part in parts} == {getattr(whole, name)}, "a loss is weighted by the whole step"
    padded = sum(micro.text_tokens.numel() for part in parts for micro in part.micro_batches)
    assert {part.padded_positions for part in parts} == {padded}
