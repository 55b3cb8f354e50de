"""Two real processes: they learn what one learns, and however one of them ends, the other does not wait for ever."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from rank_jobs import STACKS, STEPS, Learnt, end_badly, learn_all, wait_for_a_word

from voxtrain.fault import InputError, RunFailed
from voxtrain.ranks.group import ALONE
from voxtrain.ranks.launch import RankBroke, run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_and_two(tiny_folder: Path) -> tuple[dict[str, Learnt], dict[str, Learnt]]:
    return learn_all(tiny_folder, ALONE), run_ranks(partial(learn_all, tiny_folder), 2, "cpu")


@pytest.mark.parametrize("stack", STACKS)
def test_two_processes_learn_what_one_learns(one_and_two: tuple[dict[str, Learnt], ...], stack: str) -> None:
    one, two = one_and_two[0][stack], one_and_two[1][stack]
    assert len(one.losses) == STEPS
    assert two.rows == one.rows
    assert two.skipped == one.skipped == ([2] if stack == "broken" else [])
    # float32 sums in another order (2^-24 each), carried through five updates: measured 1.1e-7 and 4e-8. In bf16
    # a sum of two gradients keeps 8 bits, and a weight that rounds to the other side moves by 2^-8 of itself: measured
    # 4e-4 and 3e-4. Where one rank has all rows the other adds zeros, which changes nothing.
    loss, weight = {"narrow": (4e-3, 3e-3), "one_row": (0.0, 0.0)}.get(stack, (3e-6, 1e-6))
    for mine, theirs in zip(two.losses, one.losses, strict=True):
        assert mine == pytest.approx(theirs, rel=loss, abs=0, nan_ok=True)
    apart = sum(
        (two.weights[name].float() - tensor.float()).square().sum().item() for name, tensor in one.weights.items()
    )
    whole = sum(tensor.float().square().sum().item() for tensor in one.weights.values())
    assert (apart / whole) ** 0.5 <= weight


def test_all_ranks_hold_the_same_bits(one_and_two: tuple[dict[str, Learnt], ...]) -> None:
    for stack, learnt in one_and_two[1].items():
        assert len(learnt.digests) == 2
        assert len(set(learnt.digests)) == 1, stack


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("kill", RunFailed, "Process 1 of 2 was ended by SIGKILL"),
        ("fail", RunFailed, "In process 1 of 2: no memory is left"),
        ("refuse", InputError, "it is broken"),
        ("break", RankBroke, "process 1 of 2: ValueError: nobody foresaw this"),
    ],
)
def test_a_rank_that_ends_badly_ends_all_and_says_why(how: str, kind: type[Exception], words: str) -> None:
    began = time.monotonic()
    with pytest.raises(kind, match=words) as caught:
        run_ranks(partial(end_badly, how), 2, "cpu")
    assert time.monotonic() - began < 60
    assert _ranks_left() == []
    if how == "refuse":
        assert caught.value.ledger == "rows: 3"  # type: ignore[attr-defined]
    if how == "break":
        assert "in end_badly" in str(caught.value.__cause__)


def test_when_rank_0_is_done_so_is_the_run() -> None:
    assert run_ranks(partial(end_badly, "leave"), 2, "cpu") == "rank 0 is done"
    assert _ranks_left() == []


def test_ranks_hear_the_parent_and_not_the_terminal() -> None:
    assert run_ranks(wait_for_a_word, 2, "cpu", lambda: "SIGINT was received") == ["SIGINT was received"] * 2


def _ranks_left() -> list[int]:
    """Processes that were started by spawning and are still there."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if any("spawn_main" in part for part in child.cmdline())]
