"""Progress of training on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from voxtrain.metrics.peak import peak_gib

if TYPE_CHECKING:
    from voxtrain.model.step import StepReport

WINDOW_STEPS = 50
"""Steps over which the speed is taken: the first steps are slow, and saves come in bursts."""

SILENCE_S, SILENCE_SHARE = 30.0, 0.05
"""Off a terminal a line comes at each tenth of the steps, and after this silence or this share of the time so far."""


class TrainingProgress(pl.Callback):
    """Shows step k of N, the time left, both losses, gradient norm, rows a second and peak memory."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        """first_step: updates done before this sitting."""
        super().__init__()
        self._total, self._first = total_steps, first_step
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._marks: deque[tuple[float, int, int]] = deque(maxlen=WINDOW_STEPS + 1)  # seconds, steps, rows
        self._rows, self._began, self._told, self._told_tenth = 0, 0.0, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count time; on a terminal show the bar."""
        self._began = self._told = time.monotonic()
        self._told_tenth = 10 * self._first // self._total
        self._marks.append((self._began, self._first, 0))
        if self._console.is_terminal:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("first step", total=self._total, completed=self._first)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show this step, or keep still if a line came a moment ago."""
        report: StepReport = outputs["report"]
        now = time.monotonic()
        self._rows += report.rows
        self._marks.append((now, report.step, self._rows))
        words = self._words(report, peak_gib(pl_module.device))
        if self._bar is not None:
            self._bar.update(self._task, completed=report.step, description=words)
        elif self._is_time(now, report.step):
            self._told, self._told_tenth = now, 10 * report.step // self._total
            print(f"step {report.step}/{self._total}  {words}", file=sys.stderr, flush=True)

    def _words(self, report: StepReport, peak: float) -> str:
        (then, step_then, rows_then), (now, step, rows) = self._marks[0], self._marks[-1]
        seconds = max(now - then, 1e-9)
        left = (self._total - step) * seconds / max(step - step_then, 1)
        skipped = "  skipped: not finite" if report.skipped else ""
        return (
            f"{clock(left)} left  loss/diff {_number(report.loss_diff)}  loss/stop {_number(report.loss_stop)}  "
            f"grad norm {_number(report.grad_norm)}  {(rows - rows_then) / seconds:.3g} rows/s  "
            f"peak {peak:.2f} GiB{skipped}"
        )

    def _is_time(self, now: float, step: int) -> bool:
        silence = max(SILENCE_S, SILENCE_SHARE * (now - self._began))
        return 10 * step // self._total > self._told_tenth or now - self._told >= silence

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back: Lightning does not call `teardown` after an exception."""
        self.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; a second call does nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def clock(seconds: float) -> str:
    """`0:07`, `12:30` or `5:03:10`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
