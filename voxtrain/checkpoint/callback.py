"""Saving while training: numbered checkpoints on plan, resumable states, and stopping at a step boundary.

Everything here happens between two optimizer steps, where weights, optimizer state, counters and metrics belong
together. This callback must come after the one that writes metrics.csv: the row of step N is on disk before state N.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from torch.optim import Optimizer

from voxtrain.checkpoint.changes import fingerprint
from voxtrain.checkpoint.folders import remove_leftovers
from voxtrain.checkpoint.plan import CheckpointPlan
from voxtrain.checkpoint.resume import Learner, load_state, state_bytes, write_state
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.checkpoint.writer import DTYPES, needed_bytes, point_latest, write_checkpoint
from voxtrain.fault import RunFailed
from voxtrain.memory.disk import RESERVE_BYTES, free_bytes, told_size
from voxtrain.run_folder import RunFolder

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class SaveCheckpoints(pl.Callback):
    """Writes checkpoints and states, and stops the run when asked or when the disk runs low.

    `stopped` says afterwards why the run stopped before its last step; None where it did not.
    """

    def __init__(
        self,
        run: RunFolder,
        plan: CheckpointPlan,
        total_steps: int,
        base: Path,
        lora_config: Mapping[str, Any] | None,
        settings: Mapping[str, Any],
        stop: StopRequest,
        resumes: bool,
    ) -> None:
        """base: the resolved folder of the base model. settings: what stands in config.yaml, for the fingerprint."""
        super().__init__()
        self.stopped: str | None = None
        self._run, self._plan, self._total = run, plan, total_steps
        self._base, self._lora_config = base, lora_config
        self._fingerprint = fingerprint(settings)
        self._stop, self._resumes = stop, resumes
        self._disk_is_low = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write step 0, or load the newest state of a run that goes on."""
        self._stop.install()
        remove_leftovers(self._run)
        module = cast(Learner, pl_module)
        if self._resumes:
            load_state(self._run, module, _optimizer(trainer))
            if self._run.checkpoint_steps():
                point_latest(self._run)
        self._save_what_is_due(trainer, module)
        self._stop_if_asked(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One Lightning batch is one optimizer step: this is a step boundary."""
        module = cast(Learner, pl_module)
        self._save_what_is_due(trainer, module)
        if self._asked_to_save():
            self._save_state(trainer, module)
        self._stop_if_asked(trainer, module)

    def _asked_to_save(self) -> bool:
        request = self._run.save_request
        asked = request.exists()
        request.unlink(missing_ok=True)
        return asked

    def _save_what_is_due(self, trainer: pl.Trainer, module: Learner) -> None:
        step = module.steps_done
        if self._plan.is_checkpoint(step, self._total):
            self._save_checkpoint(module)
        # A state of the last step says that nothing is left to do, so it never stands without the last checkpoint.
        if self._plan.is_state(step, self._total) and not (self._disk_is_low and step >= self._total):
            self._save_state(trainer, module)

    def _stop_if_asked(self, trainer: pl.Trainer, module: Learner) -> None:
        at_the_end = module.steps_done >= self._total
        if self._stop.reason is None or self.stopped is not None or (at_the_end and not self._disk_is_low):
            return
        if not at_the_end:
            self._save_state(trainer, module)
        newest = max(self._run.state_steps(), default=None)
        saved = "no state could be saved" if newest is None else f"the state of step {newest} is saved"
        self.stopped = f"stopped after step {module.steps_done}: {self._stop.reason}; {saved}"
        trainer.should_stop = True

    def _save_checkpoint(self, module: Learner) -> None:
        step, tensors = module.steps_done, module.learnt_tensors()
        if self._run.checkpoint(step).exists():
            return
        dtype = self._plan.weights if self._lora_config is None else "fp32"
        facts = {"rows_seen": module.rows_seen, "skipped": len(module.skipped), "fingerprint": self._fingerprint}

        def write() -> object:
            return write_checkpoint(self._run, step, tensors, self._base, self._lora_config, self._plan.weights, facts)

        self._unless_disk_is_low(f"checkpoint {step}", needed_bytes(tensors.values(), DTYPES[dtype]), write)

    def _save_state(self, trainer: pl.Trainer, module: Learner) -> None:
        if self._run.state(module.steps_done).exists():
            return
        optimizer = _optimizer(trainer)
        needed = state_bytes(module, optimizer)
        what = f"the state of step {module.steps_done}"
        self._unless_disk_is_low(what, needed, lambda: write_state(self._run, module, optimizer, self._fingerprint))

    def _unless_disk_is_low(self, what: str, needed: int, write: Callable[[], object]) -> None:
        free = free_bytes(self._run.root)
        if free < needed + RESERVE_BYTES:
            self._stop_for_low_disk(what, needed, free)
            return
        try:
            write()
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise RunFailed(f"{what} could not be written: {error}") from error
            self._stop_for_low_disk(what, needed, free_bytes(self._run.root))

    def _stop_for_low_disk(self, what: str, needed: int, free: int) -> None:
        self._disk_is_low = True
        self._stop.request(
            f"the disk is low: {what} needs {told_size(needed)} and {told_size(free)} are free "
            f"(free some space and go on with resume={self._run.root})"
        )


def _optimizer(trainer: pl.Trainer) -> Optimizer:
    return trainer.optimizers[0]
