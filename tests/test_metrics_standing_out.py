"""Which figures stand out: robust scores that neither wild neighbours, nor length, nor tiny losses lead astray."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.metrics.spread import NORMAL, median, spread
from voxtrain.metrics.standing_out import Figures, Judgement, Window
from voxtrain.metrics.visits import Visit

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


@given(numbers)
@settings(max_examples=50, deadline=None)
def test_the_median_is_numpys(values: list[float]) -> None:
    assert median(np.array(values)) == np.median(values)


def test_the_score_is_the_robust_one() -> None:
    among = spread(np.array([1.0, 2.0, 3.0, 4.0, 100.0]), least=0.0)
    assert (among.median, among.mad) == (3.0, 1.0)
    assert among.z(13.0) == pytest.approx(10 / NORMAL)
    assert among.z(1.0) < 0


def test_equal_values_have_a_scale() -> None:
    among = spread(np.full(5, 2.0), least=0.5)
    assert (among.z(2.0), among.z(4.5)) == (0.0, 5.0)
    assert np.isfinite(spread(np.zeros(5), least=0.0).z(0.0))


def rows(step: int, losses: list[tuple[float, float, int]]) -> list[Visit]:
    return [Visit(step, f"row_{n}", *values) for n, values in enumerate(losses)]


def window_of(steps: int, *, length: int = 40, stop: float = 0.05) -> Window:
    """Alike steps of clips of 20 to 80 positions. The stop loss is one wrong guess a clip, however long it is."""
    window, random = Window(length), np.random.default_rng(0)
    for step in range(1, steps + 1):
        lengths = random.integers(20, 80, 8)
        drawn = random.normal(1, 0.2, 8), 50 * stop * random.normal(1, 0.2, 8) / lengths
        losses = [(float(diff), float(s), int(n)) for diff, s, n in zip(*drawn, lengths, strict=True)]
        mean = np.mean(losses, axis=0)
        window.add_step(Figures(mean[0] + mean[1], mean[0], mean[1], random.normal(2, 0.2)))
        window.add_rows(rows(step, losses))
    return window


def judge(window: Window, diff: float, stop: float, positions: int) -> Judgement:
    return window.judge(Figures(diff + stop, diff, stop, 2.0), rows(99, [(diff, stop, positions)]))


def test_nothing_is_judged_while_the_window_warms_up() -> None:
    assert judge(window_of(9), 99.0, 99.0, 40) == Judgement((), ((),), 9)
    assert len(judge(window_of(10), 99.0, 99.0, 40).step) == 3


def test_a_spike_of_each_figure_is_seen() -> None:
    window = window_of(40)
    found = {score.metric: score.z for score in window.judge(Figures(28.0, 1.0, 27.0, 50.0), []).step}
    assert found["train/loss/stop"] > 100  # the published run's, whose loss/stop was 27.0 in step 1610
    assert found["train/grad_norm"] > 10
    assert abs(found["train/loss/diff"]) < 3


def test_being_short_or_long_is_no_fault() -> None:
    window = window_of(40)

    def of_stop(stop: float, positions: int) -> float:
        return judge(window, 1.0, stop, positions).rows[0][1].z

    for positions in (2, 10, 50, 400):  # the same wrong guess in clips of any length
        assert of_stop(50 * 0.05 / positions, positions) < 4
    assert of_stop(27.0, 1) > 20  # no clip of one position costs so much by being short
    assert of_stop(2.0, 50) > 15


def test_a_row_is_compared_with_all_rows_not_with_its_own_past() -> None:
    window = window_of(20)
    for step in range(21, 41):  # one row in nine is bad at every visit
        window.add_rows([*rows(step, [(1.0, 0.05, 50)] * 8), Visit(step, "bad", 15.0, 0.05, 1)])
    assert judge(window, 15.0, 0.05, 1).rows[0][0].z > 20


def test_differences_of_tiny_losses_do_not_matter() -> None:
    window = window_of(40, stop=1e-5)
    assert judge(window, 1.0, 0.01, 40).rows[0][1].z < 1
    assert judge(window, 1.0, 0.01, 40).step[1].z < 1
    assert judge(window, 1.0, 2.0, 40).rows[0][1].z > 10


def test_steps_without_an_update_and_rows_without_a_loss_teach_nothing() -> None:
    window = window_of(40)
    before = judge(window, 2.0, 1.0, 40)
    window.add_step(None)
    assert judge(window, 2.0, 1.0, 40) == before
    broken = Visit(99, "broken", None, 0.1, 40)
    window.add_rows([broken])
    assert window.judge(None, [broken]) == Judgement((), ((),), 40)


def test_the_window_slides() -> None:
    window = window_of(40, length=20)
    for step in range(41, 61):
        window.add_step(Figures(10.0, 9.0, 1.0, 2.0))
        window.add_rows(rows(step, [(9.0, 1.0, 40)] * 8))
    assert [score.z for score in judge(window, 9.0, 1.0, 40).step] == [0.0] * 3
