"""Judging while training goes on (`validation.when: after_each_checkpoint`): a process of its own, one at a time.

It is in a session of its own, so that it outlives the trainer, and what becomes of it never touches training: what it
could not judge is judged, or told, by the process after training.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytorch_lightning as pl

from voxtrain.run_folder import RunFolder
from voxtrain.validation.launch import clean_environment


class JudgeBeside(pl.Callback):
    """Starts a judge when there are checkpoints that none was started for, and the last one has ended.

    It must come after the callback that saves. A checkpoint that is written in the background is seen a step later.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self._run = run
        self._judge: subprocess.Popen[bytes] | None = None
        self._seen: set[int] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Step 0 is there, or what an earlier sitting left."""
        self._look()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step boundary, after what was due is saved."""
        self._look()

    def _look(self) -> None:
        if self._judge is not None and self._judge.poll() is None:
            return
        steps = set(self._run.checkpoint_steps())
        if steps <= self._seen:
            return
        self._seen |= steps
        command = [sys.executable, "-m", "voxtrain.validation", str(self._run.root), "--beside"]
        try:
            self._judge = self._started(command)
        except OSError as error:
            print(f"No checkpoint is judged while training goes on: {error}", file=sys.stderr, flush=True)

    def _started(self, command: list[str]) -> subprocess.Popen[bytes]:
        self._run.evaluation.mkdir(parents=True, exist_ok=True)
        with self._run.post_hoc_log.open("ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
