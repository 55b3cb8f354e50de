"""rows.parquet: what is kept, under which terms, and the numbers that are drawn from it."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxtrain.durable import write_whole
from voxtrain.fault import InputError, RunFailed
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.statistics.clusters import cluster_sums, estimate
from voxtrain.validation.evidence import LOSSES, gather, write_checkpoints
from voxtrain.validation.losses import T_BINS, DrawLoss
from voxtrain.validation.table import (
    T_COLUMNS,
    comparable_rows,
    judged_steps,
    read_rows,
    terms,
    with_step,
    write_rows,
)

DRAWS = 3
TERMS = {"rows": "abc", "draws": DRAWS, "dtype": "fp32"}


def losses(step: int, rows: int) -> list[DrawLoss]:
    """Losses that are functions of step, row and draw."""
    draw = random.Random(step)
    return [
        DrawLoss(row, d, 2.0 + draw.random() - 0.01 * step, draw.random(), (None, 1.0, 2.0, None, 3.0), 5 + row)
        for row in range(rows)
        for d in range(DRAWS)
    ]


def table_of(steps: list[int], groups: int, rows: int = 12) -> pa.Table:
    """Records of some checkpoints on `rows` rows over `groups` groups."""
    names = [(f"id{row:02d}", f"g{row % groups}") for row in range(rows)]
    table = None
    for step in steps:
        table = with_step(table, step, names, losses(step, rows), TERMS)
    return table


def test_a_bin_of_flow_time_has_a_column() -> None:
    assert len(T_COLUMNS) == T_BINS


def test_means_are_those_over_the_records() -> None:
    table = table_of([0, 10, 20], groups=6)
    found = gather(table, 1.0, 0.5)
    assert found.steps == (0, 10, 20)
    assert (found.rows, found.groups, found.draws) == (12, 6, DRAWS)
    frame = table.to_pandas().groupby("step")[["loss/diff", "loss/stop"]].mean()
    np.testing.assert_allclose(found.means["loss/diff"], frame["loss/diff"], rtol=1e-14)
    np.testing.assert_allclose(found.means["loss/total"], frame["loss/diff"] + 0.5 * frame["loss/stop"], rtol=1e-14)


def test_the_order_of_judging_changes_nothing() -> None:
    ordered, turned = gather(table_of([0, 10, 20], 6), 1, 1), gather(table_of([20, 0, 10], 6), 1, 1)
    for name in LOSSES:
        np.testing.assert_array_equal(ordered.means[name], turned.means[name])
        np.testing.assert_array_equal(ordered.estimates[name].influence, turned.estimates[name].influence)
    np.testing.assert_array_equal(ordered.standing.p_best, turned.standing.p_best)


def test_intervals_hold_the_means_and_differences_are_paired() -> None:
    found = gather(table_of([10, 20], 6), 1, 1)
    low, high = found.difference_interval(10, 20)
    assert low < found.loss(10) - found.loss(20) < high
    assert found.difference_interval(10, 10) == (0, 0)
    assert sum(found.probabilities_best().values()) == pytest.approx(1)


def test_recordings_are_what_varies() -> None:
    table = table_of([10, 20], 5)
    frame = table.to_pandas()
    per_row = frame.groupby(["step", "id"])["loss/stop"].mean().unstack()
    groups = frame.groupby("id")["group"].first()[per_row.columns]
    wanted = estimate(*cluster_sums(per_row.to_numpy(), list(groups)))
    found = gather(table, 1, 1).estimates["loss/stop"]
    np.testing.assert_allclose(found.influence, wanted.influence, rtol=1e-9, atol=1e-15)
    assert found.degrees == pytest.approx(wanted.degrees)


def test_with_four_recordings_there_is_no_interval_and_with_five_there_is() -> None:
    few, enough = gather(table_of([0, 10], 4), 1, 1), gather(table_of([0, 10], 5), 1, 1)
    assert few.estimates is None
    assert few.standing is None
    assert few.probabilities_best() == {}
    assert few.difference_interval(0, 10) is None
    assert enough.probabilities_best() == {10: 1.0}  # the base model is no candidate


def test_what_is_not_finite_stands_outside(tmp_path: Path) -> None:
    frame = table_of([0, 10, 20, 30], 6).to_pandas()
    frame.loc[(frame["step"] == 20) & (frame["id"] == "id03"), "loss/diff"] = np.inf
    found = gather(pa.Table.from_pandas(frame), 1, 1)
    assert found.trained == [10, 30]
    assert set(found.probabilities_best()) == {10, 30}
    write_checkpoints(RunFolder(tmp_path), found)


def test_what_a_split_could_have_shown_is_more_than_half_of_its_interval() -> None:
    found = gather(table_of([10, 20], 6), 1, 1)
    low, high = found.difference_interval(10, 20)
    assert (high - low) / 2 < found.detectable_difference(10, 20) < high - low


@pytest.mark.parametrize("groups", [3, 6])
def test_checkpoints_csv_lists_every_step_once(groups: int, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_checkpoints(run, gather(table_of([0, 10, 20], groups), 1, 1))
    with run.evaluated_checkpoints.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "10", "20"]
    for row in rows:
        assert float(row["loss/total"]) == pytest.approx(float(row["loss/diff"]) + float(row["loss/stop"]), abs=1e-12)
        assert (row["loss/total/low"] == "") == (groups < 5)
        assert (row["probability_best"] == "") == (groups < 5 or row["step"] == "0")


def test_records_that_do_not_pair_are_refused() -> None:
    table = table_of([0, 10], 6)
    with pytest.raises(RunFailed, match="rows x draws"):
        gather(table.slice(1), 1, 1)


def prepared(tmp_path: Path) -> tuple[RunFolder, Path]:
    run = RunFolder(tmp_path)
    rows = DataFolder(run.data).rows("validation")
    write_whole(rows, "{}\n")
    for step in (0, 10):
        run.checkpoint(step).mkdir(parents=True)
    return run, rows


def test_records_are_kept_under_the_same_terms_and_made_again_under_others(tmp_path: Path) -> None:
    run, rows = prepared(tmp_path)
    wanted = terms(rows, DRAWS, "fp32")
    assert comparable_rows(run, wanted) is None
    names = [("a", "g"), ("b", "h")]
    write_rows(run, with_step(None, 10, names, losses(10, 2), wanted))
    assert judged_steps(comparable_rows(run, wanted)) == [10]
    assert comparable_rows(run, terms(rows, DRAWS + 1, "fp32")) is None
    assert comparable_rows(run, terms(rows, DRAWS, "bf16")) is None
    write_whole(rows, '{"id": "other"}\n')
    assert comparable_rows(run, terms(rows, DRAWS, "fp32")) is None


def test_records_of_a_checkpoint_that_is_gone_are_never_dropped(tmp_path: Path) -> None:
    run, rows = prepared(tmp_path)
    write_rows(run, with_step(None, 10, [("a", "g")], losses(10, 1), terms(rows, DRAWS, "fp32")))
    run.checkpoint(10).rmdir()
    assert judged_steps(comparable_rows(run, terms(rows, DRAWS, "fp32"))) == [10]
    with pytest.raises(InputError, match="draws = 3, now 4"):
        comparable_rows(run, terms(rows, DRAWS + 1, "fp32"))


def test_bins_without_a_position_are_null_in_the_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_rows(run, table_of([10], 6))
    found = pq.read_table(run.evaluated_rows)
    assert [found[name].null_count for name in T_COLUMNS] == [36, 0, 0, 36, 0]
    assert found.num_rows == 36


def test_a_torn_file_is_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_rows(run, table_of([10], 6))
    run.evaluated_rows.write_bytes(run.evaluated_rows.read_bytes()[:-50])
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(run)
