"""The paired comparison of runs: its numbers, and which runs it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_material as made

from voxtrain.durable import read_json, write_json, write_jsonl
from voxtrain.fault import InputError
from voxtrain.report import charts
from voxtrain.report.__main__ import main
from voxtrain.report.cost import size_gib
from voxtrain.report.evidence import read_evidence
from voxtrain.report.paired import FEWEST_RECORDINGS, LEVEL, POWER, Paired, paired
from voxtrain.report.summary import summarize
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.validation import evidence as validation
from voxtrain.validation.losses import DrawLoss
from voxtrain.validation.table import with_step, write_rows

RECORDINGS, ROWS_EACH, DRAWS = 6, 4, 2
NAMES = [(f"row_{n:02d}", f"recording_{n % RECORDINGS}") for n in range(RECORDINGS * ROWS_EACH)]
HARD = np.random.default_rng(5).normal(0, 0.5, len(NAMES))
"""What each row adds to the loss of every run."""


@pytest.fixture(autouse=True)
def charts_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is the slow part of a page, and has tests of its own."""
    monkeypatch.setattr(charts, "_svg", lambda *_, enough: "<svg></svg>" if enough else "")


def judged_run(
    root: Path,
    step: int,
    diff: np.ndarray,
    stop: float = 0.1,
    *,
    names: list[tuple[str, str]] = NAMES,
    draws: int = DRAWS,
    dtype: str = "fp32",
    weights: tuple[float, float] = (1.0, 1.0),
    positions: int = 30,
    text: str = "said",
) -> RunFolder:
    """A run whose selected step has these losses, and whose other judged step has none that matter."""
    run = made.fake_run(root)
    table = None
    for at, values in ((0, diff + 9), (step, diff), (200, diff - 9)):
        losses = [
            DrawLoss(row, draw, float(values[row] + (-1) ** draw * 0.01), stop, (None,) * 5, positions)
            for row in range(len(names))
            for draw in range(draws)
        ]
        table = with_step(table, at, names, losses, {"rows": "x", "draws": draws, "dtype": dtype})
    assert table is not None
    write_rows(run, table)
    write_jsonl(DataFolder(run.data).rows("validation"), [{"id": i, "text": text, "duration": 4.8} for i, _ in names])
    chosen = {"selected_step": step, "loss_weights": {"diff": weights[0], "stop": weights[1]}}
    write_json(run.selection, read_json(run.selection) | chosen)
    return run


def compared(*runs: RunFolder) -> Paired:
    found = paired([summarize(read_evidence(run), run.root.name) for run in runs])
    assert found is not None
    return found


def test_a_difference_is_that_of_the_rows_with_the_jackknife_interval_over_recordings(tmp_path: Path) -> None:
    apart = 0.05 + np.random.default_rng(6).normal(0, 0.03, len(NAMES))
    first = judged_run(tmp_path / "first", 80, 1 + HARD, 0.1)
    other = judged_run(tmp_path / "other", 160, 1 + HARD + apart, 0.4)
    found = compared(first, other)
    assert (found.reference, found.steps) == ("first", {"first": 80, "other": 160})
    assert (found.rows, found.recordings, found.draws) == (len(NAMES), RECORDINGS, DRAWS)
    diff = found.others["other"]["loss/diff"]
    assert diff.mean == pytest.approx(apart.mean(), rel=1e-12)
    member = np.array([int(group[-1]) for _, group in NAMES])
    without = np.array([apart[member != g].mean() for g in range(RECORDINGS)])  # one recording left out
    error = np.sqrt((RECORDINGS - 1) / RECORDINGS * ((without - apart.mean()) ** 2).sum())
    assert diff.high - diff.mean == pytest.approx(2.570582 * error, rel=1e-4)  # t of 5 degrees of freedom, 97.5 %
    assert diff.mean - diff.low == pytest.approx(diff.high - diff.mean)
    assert diff.detectable == pytest.approx((2.570582 + 0.919544) * error, rel=1e-4)  # and 80 %
    assert found.others["other"]["loss/stop"].mean == pytest.approx(0.3)
    assert found.others["other"]["loss/total"].mean == pytest.approx(apart.mean() + 0.3)


def test_how_hard_the_rows_are_does_not_matter_and_the_order_only_turns_the_sign(tmp_path: Path) -> None:
    apart = np.random.default_rng(7).normal(0.1, 0.03, len(NAMES))
    easy = judged_run(tmp_path / "easy", 80, np.ones(len(NAMES))), judged_run(tmp_path / "easy_", 80, 1 + apart)
    hard = judged_run(tmp_path / "hard", 80, 1 + 40 * HARD), judged_run(tmp_path / "hard_", 80, 1 + 40 * HARD + apart)
    one, two = compared(*easy).others["easy_"]["loss/diff"], compared(*hard).others["hard_"]["loss/diff"]
    assert (one.low, one.high) == pytest.approx((two.low, two.high))
    turned = compared(*reversed(easy)).others["easy"]["loss/diff"]
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-one.mean, -one.high, -one.low))


def test_the_page_says_who_is_lower_at_which_step_and_what_each_took(tmp_path: Path) -> None:
    noise = np.random.default_rng(8).normal(0, 0.01, len(NAMES))
    first = judged_run(tmp_path / "first", 80, 1 + HARD)
    better, same = (
        judged_run(tmp_path / "better", 160, 1 + HARD - 0.2 + noise),
        judged_run(tmp_path / "same", 120, 1 + HARD + noise - noise.mean()),
    )
    assert main([str(run.root) for run in (first, better, same)]) == 0
    html = (tmp_path / "compare.html").read_text()
    assert "better (step 160) lies 0.2" in html
    assert "below first (step 80) in held-out loss/total" in html
    assert "This split cannot tell same (step 120) from first (step 80)" in html
    assert '<span class="chip good">lower</span>' in html
    assert "cannot be told apart" in html
    assert "24 held-out rows of 6 recordings under 2 fixed draws each" in html
    for told in ("1.93 GiB", "1 min 11 s", "37.5 s"):  # memory, training, and three stages of 12.5 s after it
        assert told in html


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": [*NAMES[:-1], ("row_new", "recording_5")]}, "on other rows: 1 row (such as row_new) in the one"),
        ({"draws": 4}, "validation.draws = 4 and 2"),
        ({"dtype": "bf16"}, "validation.dtype = bf16 and fp32"),
        ({"weights": (1.0, 0.5)}, "train.loss_weights.stop = 0.5 and 1.0"),
        ({"positions": 29}, "24 rows (such as row_00) of the same name with another text or other audio"),
        ({"text": "sung"}, "another text or other audio"),
        ({"names": [(name, "one") for name, _ in NAMES]}, "in another recording (data.group_by)"),
    ],
    ids=["rows", "draws", "dtype", "weights", "audio", "text", "groups"],
)
def test_runs_that_were_judged_otherwise_are_refused_and_nothing_is_written(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    first = judged_run(tmp_path / "first", 80, 1 + HARD)
    other = judged_run(tmp_path / "other", 80, 1 + HARD, **changes)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as told:
        main([str(first.root), str(other.root)])
    assert len(told.value.faults) == 1
    assert words in told.value.faults[0].what
    assert told.value.faults[0].where == "other and first"
    assert sorted(tmp_path.rglob("*")) == before


def test_every_reason_is_told_at_once(tmp_path: Path) -> None:
    first = judged_run(tmp_path / "first", 80, 1 + HARD)
    judged_run(tmp_path / "other", 80, 1 + HARD, draws=4, weights=(2.0, 0.5), names=NAMES[:12])
    with pytest.raises(InputError) as told:
        compared(first, RunFolder(tmp_path / "other"))
    assert len(told.value.faults) == 4


@pytest.fixture
def few(tmp_path: Path) -> Callable[[str], RunFolder]:
    names = [(name, f"recording_{n % 4}") for n, (name, _) in enumerate(NAMES)]
    return lambda name: judged_run(tmp_path / name, 80, 1 + HARD, names=names)


def test_with_few_recordings_there_is_no_interval(few: Callable[[str], RunFolder]) -> None:
    found = compared(few("a"), few("b"))
    assert found.recordings == 4
    assert all(np.isnan(each.low) and np.isnan(each.detectable) for each in found.others["b"].values())


def test_a_run_that_is_not_judged_stands_beside_the_others(tmp_path: Path) -> None:
    runs = [judged_run(tmp_path / name, 80, 1 + HARD) for name in ("a", "b", "c")]
    runs[1].evaluated_rows.unlink()
    assert compared(*runs).unjudged == ["b"]
    assert list(compared(*runs).others) == ["c"]
    assert paired([summarize(read_evidence(run), run.root.name) for run in runs[:2]]) is None


def test_records_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    runs = [judged_run(tmp_path / name, 80, 1 + HARD) for name in ("a", "b")]
    runs[1].evaluated_rows.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read"):
        compared(*runs)


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = judged_run(tmp_path / "a", 80, 1 + HARD)
    with pytest.raises(InputError, match="named more than once"):
        main([str(run.root), f"{run.root}/"])


def test_what_validation_promises_is_what_the_report_assumes() -> None:
    assert (FEWEST_RECORDINGS, LEVEL, POWER) == (validation.FEWEST_GROUPS, validation.LEVEL, validation.POWER)


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2**20))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "nowhere" / ("x" * 100))
    assert size_gib(tmp_path) == pytest.approx(2**-10, rel=1e-3)
