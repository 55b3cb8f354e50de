"""The benchmark of validation: its arithmetic on draws whose spread is known, and what stands in the repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import validation
from benchmarks.draw_spread import Redrawn, spread
from benchmarks.shape import SHAPE, read_shape
from voxtrain.model.size import parameter_counts

RESULT = Path(validation.__file__).parent / "results" / "validation_cpu.md"
ROWS, TIMES = 5, 40_000


def drawn(mean: float, shared: np.ndarray, own: float, fresh: float, seed: int) -> Redrawn:
    """Losses whose fixed draws have a part that both checkpoints share, and an own one of standard deviation `own`."""
    noise = np.random.Generator(np.random.Philox(seed))
    fixed = mean + shared + noise.normal(0, own, shared.shape)
    return Redrawn(fixed, mean + noise.normal(0, fresh, shared.shape))


def test_standard_errors_are_those_of_the_draws_that_were_made() -> None:
    shared = np.random.Generator(np.random.Philox(1)).normal(0, 0.3, (TIMES, ROWS))
    found = spread(drawn(1.0, shared, 0.01, 0.6, 2), drawn(1.2, shared, 0.01, 0.6, 3))
    assert found.difference == pytest.approx(-0.2, abs=0.01)
    assert found.relative == pytest.approx(-0.2 / 1.2, abs=0.01)
    # what both share goes out of a paired difference; sampled 40,000 times, a deviation is known within 1 %
    assert found.fixed == pytest.approx((2 * 0.01**2 / ROWS) ** 0.5, rel=0.02)
    assert found.fixed_unpaired == pytest.approx((2 * (0.3**2 + 0.01**2) / ROWS) ** 0.5, rel=0.02)
    assert found.fresh == pytest.approx((2 * 0.6**2 / ROWS) ** 0.5, rel=0.02)
    assert found.ten_rows == pytest.approx((2 * 0.6**2 / 10) ** 0.5, rel=0.02)


def test_ten_rows_that_are_drawn_anew_add_what_rows_differ_by() -> None:
    levels, shared = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.zeros((TIMES, ROWS))
    one, other = (drawn(1.0, shared + levels, 0.0, 0.1, seed) for seed in (2, 3))
    lifted = [Redrawn(each.fixed, each.fresh + levels) for each in (one, other)]
    found = spread(*lifted)
    assert found.fixed == 0
    assert found.ten_rows == pytest.approx((2 * (levels.var(ddof=1) + 0.1**2) / 10) ** 0.5, rel=0.02)


def test_the_arithmetic_of_one_draw_without_text_is_that_of_one_pass() -> None:
    shape = read_shape(SHAPE)
    assert validation._passes(shape, positions=100, audio=100, draws=1) == pytest.approx(1)
    one, eight = (validation._passes(shape, 550, 351, draws) for draws in (1, 8))
    assert one < 1  # upstream goes through LocEnc and LocDiT at text too
    assert one < eight < 8 * one
    counts, patch = parameter_counts(shape), int(shape["patch_size"])
    again = 7 * 351 * counts["feat_decoder"] * (2 * patch + 3)  # only LocDiT sees a draw
    whole = validation._passes(shape, 550, 550, 1)
    assert eight - one == pytest.approx(again / _pass(shape, 550), rel=1e-12)
    assert whole == pytest.approx(1)


def _pass(shape: dict[str, Any], positions: int) -> float:
    """Upstream's forward, in parameters times the tokens that go through them."""
    counts, patch = parameter_counts(shape), int(shape["patch_size"])
    embedding = shape["lm_config"]["vocab_size"] * shape["lm_config"]["hidden_size"]
    language = counts["base_lm"] + counts["residual_lm"] - embedding
    return positions * float(language + counts["feat_encoder"] * (patch + 1) + counts["feat_decoder"] * (2 * patch + 3))


def test_times_are_losses_a_second_against_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"upstream's loop": [8.0, 9.0, 7.0], "ours, 8 draws a row": [4.0, 4.0, 5.0]}
    validation._print_speed(seconds, {"upstream's loop": 1, "ours, 8 draws a row": 8}, rows=8)
    told = capsys.readouterr().out.splitlines()
    assert told[1].split()[-5:] == ["8.000", "7.000", "1.00", "1.00", "1.00x"]
    assert told[2].split()[-5:] == ["4.000", "4.000", "2.00", "16.00", "16.00x"]


def test_speech_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validation.main(["--speech", str(tmp_path)]) == 2
    assert "no manifest.jsonl" in capsys.readouterr().err


def test_the_committed_result_names_its_machine_and_command() -> None:
    found = RESULT.read_text(encoding="utf-8")
    assert "python -m benchmarks.validation" in found
    machines = [json.loads(line) for line in found.splitlines() if line.startswith('{"processor"')]
    assert machines
    assert all(machine["torch"] and machine["threads"] for machine in machines)
    for part in validation.PARTS:
        assert f"\n{part}\n" in found
