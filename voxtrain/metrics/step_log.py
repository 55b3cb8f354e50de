"""metrics.csv: one row for each optimizer step, the authority on what training did.

Row N is update N. The file is append-only and on disk before anything else of the step is saved, so a state of step N
always finds its N rows; a run that goes on cuts the file back to the step that it goes on from.
"""

from __future__ import annotations

import csv
import io
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytorch_lightning as pl

from voxtrain.checkpoint.facts import way_on
from voxtrain.durable import cut_log_back, read_log_rows
from voxtrain.fault import RunFailed
from voxtrain.metrics.peak import peak_gib
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from voxtrain.model.step import StepReport

COLUMNS = (
    "step",  # 1-based
    "train/loss/total",  # weighted sum of the two below, each over all rows of the step
    "train/loss/diff",
    "train/loss/stop",
    "train/grad_norm",  # before clipping
    "train/lr",
    "train/rows",  # seen so far
    "train/micro_batches",
    "train/padding_share",  # of the positions that went through the model
    "train/positions_per_second",  # of this step, without padding
    "train/audio_seconds",  # seen so far
    "train/seconds",  # of this step
    "train/peak_gib",  # so far in this sitting, see peak.py
    "train/skipped",  # 1: no update, because a loss or the gradient was not finite
)

Value = int | float | str


def step_row(report: StepReport, audio_seconds: float, peak: float) -> dict[str, Value]:
    """One row of metrics.csv. Numbers that are not finite become empty cells: they belong to a skipped step.

    audio_seconds: seen so far, this step included. peak: GiB.
    """
    row: dict[str, Value] = {
        "step": report.step,
        "train/loss/total": _finite(report.loss_total),
        "train/loss/diff": _finite(report.loss_diff),
        "train/loss/stop": _finite(report.loss_stop),
        "train/grad_norm": _finite(report.grad_norm),
        "train/lr": report.lr,
        "train/rows": report.rows_seen,
        "train/micro_batches": report.micro_batches,
        "train/padding_share": round(report.padding_share, 6),
        "train/positions_per_second": round(report.positions / max(report.seconds, 1e-9), 2),
        "train/audio_seconds": round(audio_seconds, 6),
        "train/seconds": round(report.seconds, 4),
        "train/peak_gib": round(peak, 4),
        "train/skipped": int(report.skipped),
    }
    return row


def _other_columns(path: Path, found: set[str]) -> str:
    lacks, other = sorted(set(COLUMNS) - found), sorted(found - set(COLUMNS))
    return (
        f"{path} was written by another version of voxtrain (it lacks {', '.join(lacks) or 'nothing'}; has also "
        f"{', '.join(other) or 'nothing'}), and half a record compares with nothing. Go on with the version that began "
        "the run, which its environment.json names, or start a new run."
    )


def _not_written(run: RunFolder, error: OSError) -> str:
    return (
        f"{run.metrics} could not be written: {error.strerror or error}\nA step that is not in it does not count. "
        f"{way_on(run)}"
    )


def _finite(value: float) -> Value:
    return float(value) if math.isfinite(value) else ""


class StepLog(pl.Callback):
    """Writes metrics.csv. Must stand before the callback that saves checkpoints, and before the W&B one."""

    def __init__(self, run: RunFolder, first_step: int) -> None:
        """first_step: updates done before this sitting; 0 for a new run."""
        super().__init__()
        self._run, self._path, self._first_step = run, run.metrics, first_step
        self._file: IO[str] | None = None
        self._audio_seconds, self._peak_gib = 0.0, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Cut the rows after `first_step` off and open the file.

        Raises RunFailed if rows before it are missing or have other columns, in which case the file is as it was, or
        if it cannot be written.
        """
        rows = read_log_rows(self._path)
        if rows and tuple(rows[0]) != COLUMNS:
            raise RunFailed(_other_columns(self._path, set(rows[0])))
        rows = [row for row in rows if int(row["step"]) <= self._first_step]
        if [int(row["step"]) for row in rows] != list(range(1, self._first_step + 1)):
            raise RunFailed(
                f"{self._path} does not hold steps 1 to {self._first_step}, so this run cannot go on with a whole "
                "record. Restore the file from a copy of the run folder, or start a new run."
            )
        try:
            cut_log_back(self._path, self._first_step)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise RunFailed(_not_written(self._run, error)) from error
        if rows:
            self._audio_seconds = float(rows[-1]["train/audio_seconds"])
        if not rows:
            self._write(COLUMNS)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append the row of this step."""
        report: StepReport = outputs["report"]
        # rounded as it is written: a resumed run goes on from what it reads here
        self._audio_seconds = round(self._audio_seconds + report.audio_seconds, 6)
        self._peak_gib = max(self._peak_gib, peak_gib(pl_module.device))
        self._write(step_row(report, self._audio_seconds, self._peak_gib).values())

    def _write(self, cells: Any) -> None:
        assert self._file is not None, "StepLog.setup was not called"
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        try:
            self._file.write(line.getvalue())
            self._file.flush()
            os.fsync(self._file.fileno())  # a state that survives a power cut must find its rows
        except OSError as error:
            raise RunFailed(_not_written(self._run, error)) from error

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the file: Lightning does not call `teardown` after an exception."""
        self.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # on a full disk: what could not be written is told already
                file.close()
