"""The outlier trace: which rows are behind a step that stands out, written while it happens. Never stops training.

It sees what the step log sees and keeps a window of steps and a ring buffer of each row's visits; nothing it does
reaches the weights. A run that goes on rebuilds both from metrics.csv and outliers/rows.jsonl, and writes the same
traces as one that was never interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

import pytorch_lightning as pl

from voxtrain.durable import read_log_rows
from voxtrain.manifest.row import Row
from voxtrain.metrics.outlier_folder import OutlierFolder, RowFacts
from voxtrain.metrics.outlier_trace import Known, alarm, trace
from voxtrain.metrics.standing_out import Figures, Window
from voxtrain.metrics.visits import RingBuffer, Visit, line, replay, visits_of
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from voxtrain.model.step import StepReport


class OutlierTrace(pl.Callback):
    """Writes a trace of each step that stands out, and names the rows that do. Must stand after `StepLog`.

    window: steps that a new one is compared with. threshold: robust z-score from which on a figure stands out.
    history: visits of each row that a trace shows.
    """

    def __init__(
        self, run: RunFolder, rows: Sequence[Row], first_step: int, *, window: int, threshold: float, history: int
    ) -> None:
        """rows: those that are learnt from. first_step: updates done before this sitting; 0 for a new run."""
        super().__init__()
        self._run, self._first_step = run, first_step
        self._length, self._threshold = window, threshold
        self._folder, self._facts = OutlierFolder(run), RowFacts(run, rows)
        self._window, self._visits = Window(window), RingBuffer(history)
        self._log: IO[str] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Drop what later steps left, and know again what was known after `first_step`."""
        try:
            self._folder.cut_back(self._first_step)
            found = replay(self._folder.visits, self._first_step, self._remember)
            if found < self._first_step:
                print(
                    f"{self._folder.visits} holds {found} of {self._first_step} steps: the outlier trace knows the "
                    "other rows' losses no more.",
                    file=sys.stderr,
                )
            for row in read_log_rows(self._run.metrics)[-self._length :]:
                self._window.add_step(_logged(row))
            self._log = self._folder.visits.open("a", encoding="utf-8")
        except Exception as error:
            self._give_up(error)

    def _remember(self, visits: list[Visit]) -> None:
        self._window.add_rows(visits)
        self._visits.add(visits)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge this step, and write its trace where it stands out."""
        if self._log is None:
            return
        try:
            self._look_at(outputs["report"], self._log)
        except Exception as error:  # hours of training must not die of a diagnosis
            self._give_up(error)

    def _look_at(self, report: StepReport, log: IO[str]) -> None:
        figures = None
        if not report.skipped:
            figures = Figures(report.loss_total, report.loss_diff, report.loss_stop, report.grad_norm)
        visits = visits_of(report)
        judgement = self._window.judge(figures, visits)
        found = alarm(report, judgement, self._threshold, self._folder.named())
        if found.fired:
            ids = {visit.id for visit in visits}
            known = Known(
                self._facts.rows(ids),
                {row: self._facts.flags(row) for row in ids},
                {row: self._visits.of(row) for row in ids},
            )
            self._folder.write(report.step, trace(report, judgement, found, known), found.suspects)
        log.write(line(visits))
        log.flush()
        self._window.add_step(figures)
        self._remember(visits)

    def _give_up(self, error: Exception) -> None:
        print(f"The outlier trace ended ({type(error).__name__}: {error}); training goes on.", file=sys.stderr)
        self.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the log: Lightning does not call `teardown` after an exception."""
        self.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the log, and say what was found."""
        self.close()
        steps, named = len(self._folder.steps()), len(self._folder.named())
        if steps:
            print(f"{_counted(steps, 'step')} stood out: see {self._folder.root}", file=sys.stderr)
        if named:
            print(
                f"{_counted(named, 'row')} came under suspicion. Listen, and leave out what is bad in a new run: "
                f"clean.exclude={self._folder.exclude}",
                file=sys.stderr,
            )

    def close(self) -> None:
        """Close the log; a second call does nothing."""
        log, self._log = self._log, None
        if log is not None:
            with suppress(OSError):  # on a full disk: a line of a diagnosis, and what matters is told by others
                log.close()


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _logged(row: dict[str, str]) -> Figures | None:
    """The figures of a row of metrics.csv, to the last bit; None for a step without an update."""
    if row["train/skipped"] == "1":
        return None
    names = ("train/loss/total", "train/loss/diff", "train/loss/stop", "train/grad_norm")
    return Figures(*(float(row[name]) for name in names))
