"""Steps whose loss or gradient is not finite: left out, counted, told to every log, and ended after three in a row."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from model_batches import StepBatch, step_batch
from model_steps import ADAMW, SCHEDULE, fit, module, rows_of_step

from voxtrain.durable import read_json, read_log_rows
from voxtrain.fault import RunFailed
from voxtrain.metrics.outliers import OutlierTrace
from voxtrain.metrics.step_log import StepLog
from voxtrain.model.module import VoxModule
from voxtrain.model.tuning import FullTuning
from voxtrain.run_folder import RunFolder


def broken(step: int) -> StepBatch:
    batch = step_batch(step, [[row] for row in rows_of_step(step, 2)])
    batch.micro_batches[1].audio_feats.fill_(math.nan)
    return batch


def test_step_that_is_not_finite_is_skipped_and_counted(tiny_folder: Path) -> None:
    trained = module(tiny_folder, FullTuning())
    steps = [step_batch(step, [rows_of_step(step, 2)]) if step % 2 else broken(step) for step in range(1, 6)]
    before: list[dict[str, torch.Tensor]] = []

    class Weights(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: VoxModule, *_: object) -> None:
            before.append({name: tensor.clone() for name, tensor in pl_module.learnt_tensors().items()})

    collect = fit(trained, steps, Weights())
    assert trained.skipped == [2, 4]
    assert (trained.steps_done, trained.rows_seen) == (5, 10)
    assert [report.skipped for report in collect.reports] == [False, True, False, True, False]
    assert [math.isfinite(row.diff) for row in collect.reports[1].row_losses] == [True, False]
    assert all(torch.equal(before[0][name], before[1][name]) for name in before[0])
    assert all(tensor.isfinite().all() for tensor in before[4].values())
    # the learning rate goes on with the steps, whether they made an update or not
    assert [report.lr for report in collect.reports] == [ADAMW.lr * SCHEDULE.factor(step, 20) for step in range(5)]


def test_three_such_steps_in_a_row_end_the_run_and_name_the_rows(tiny_folder: Path, tmp_path: Path) -> None:
    trained, run = module(tiny_folder, FullTuning()), RunFolder(tmp_path)
    steps = [step_batch(1, [rows_of_step(1, 2)]), *(broken(step) for step in range(2, 6))]
    trace = OutlierTrace(run, [], 0, window=100, threshold=10.0, history=4)
    with pytest.raises(RunFailed, match="in steps 2, 3, 4") as told:
        fit(trained, steps, StepLog(run, 0), trace)
    assert "row3, row5, row7" in str(told.value)
    assert "row2" not in str(told.value)
    assert trained.skipped == [2, 3, 4]
    assert trained.steps_done == 4
    assert [row["train/skipped"] for row in read_log_rows(run.metrics)] == ["0", "1", "1", "1"]  # the last one too
    assert [read_json(run.outlier(step))["suspects"] for step in (2, 3, 4)] == [["row3"], ["row5"], ["row7"]]


def test_batch_of_another_step_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(RuntimeError, match="step 2 came after 0 steps"):
        fit(module(tiny_folder, FullTuning()), [step_batch(2, [rows_of_step(2, 2)])])
