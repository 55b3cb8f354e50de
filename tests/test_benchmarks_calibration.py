"""The simulation behind intervals and tie sets: what it found stands in the repository, and can be found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import calibration
from benchmarks.contending_intervals import OURS, ROWS_ALONE
from benchmarks.synthetic_losses import SHAPES
from voxtrain.validation.evidence import FEWEST_GROUPS

RESULT = Path(calibration.__file__).parent / "results" / "calibration.md"


def test_the_committed_result_is_calibrated_and_gives_the_number_that_we_warn_below() -> None:
    found = RESULT.read_text(encoding="utf-8")
    assert found.rstrip().endswith("calibrated")
    assert f"Intervals can be trusted from {FEWEST_GROUPS} recordings" in found
    assert "--trials 2000" in found


def test_promises_that_do_not_hold_are_told() -> None:
    covered = {(s.name, n, name): 0.95 for s in SHAPES for n in calibration.RECORDINGS for name in (OURS, ROWS_ALONE)}
    held = {(s.name, n, truth): 0.9 for s in SHAPES for n in calibration.RECORDINGS for truth in calibration.TRUTHS}
    told = calibration.broken_promises(covered, held, 2000)
    assert len(told) == 3
    assert "proves nothing" in told[-1]
    covered |= {(SHAPES[0].name, 5, OURS): 0.8}
    assert calibration.trusted_from(covered) == 10


@pytest.mark.slow
def test_forty_recordings_in_400_trials() -> None:
    """Three standard errors of 400 trials are 3.3 %: a percentile bootstrap of rows is 35 % off."""
    covered = calibration.coverage(400)
    at = (SHAPES[0].name, 40)
    assert covered[*at, OURS] == pytest.approx(0.95, abs=0.033)
    assert covered[*at, ROWS_ALONE] < 0.7
    held, sizes = calibration.ties(400)
    assert held[*at, calibration.VALLEY] >= 0.95
    assert held[*at, calibration.ALIKE] == pytest.approx(0.95, abs=0.033)
    assert sizes[*at, calibration.VALLEY] < sizes[SHAPES[0].name, 5, calibration.VALLEY]
