"""Saving while training: numbered checkpoints on plan, resumable states, and stopping at a step boundary.

What is saved is what stands between two optimizer steps, where weights, optimizer state, counters and metrics belong
together; it may be written beside the steps that follow (held.py). This callback must come after the one that writes
metrics.csv: the row of step N is on disk before state N.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from torch.optim import Optimizer

from voxtrain.checkpoint.background import BackgroundWriter, Job, LowDisk, room_for
from voxtrain.checkpoint.changes import course_may_change, fingerprint
from voxtrain.checkpoint.facts import Facts, Origin, check_content, check_origin, read_facts, rows_fingerprint
from voxtrain.checkpoint.folders import remove_leftovers
from voxtrain.checkpoint.held import Held
from voxtrain.checkpoint.plan import CheckpointPlan
from voxtrain.checkpoint.resume import load_state, weights_of_state
from voxtrain.checkpoint.save_log import Save, write_save
from voxtrain.checkpoint.snapshot import (
    Learner,
    can_be_read_beside_kernels,
    finish_device_work,
    remove_older_states,
    take_snapshot,
    write_snapshot,
)
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.checkpoint.stream import LazyTensor, lazily
from voxtrain.checkpoint.writer import DTYPES, point_latest, write_checkpoint
from voxtrain.memory.disk import told_size
from voxtrain.run_folder import RunFolder

POLL_S = 5.0
"""Between two looks at a disk that is full."""


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
        versions: Mapping[str, str | None],
    ) -> None:
        """base: the resolved folder of the base model. settings: what stands in config.yaml, for the fingerprint.

        versions: of the packages that results depend on.
        """
        super().__init__()
        self.stopped: str | None = None
        self._run, self._plan, self._total = run, plan, total_steps
        self._base, self._lora_config = base, lora_config
        known = fingerprint(settings), fingerprint(settings, course=False)
        self._origin, self._new_course = (
            Origin(*known, rows_fingerprint(run), dict(versions)),
            course_may_change(settings),
        )
        self._stop, self._resumes = stop, resumes
        self._writer = BackgroundWriter(run.root)
        self._under_way: Save | None = None
        self._disk_is_low = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finish a run that has no step left to train: its last checkpoint may be missing, for want of room."""
        if self._resumes and max(self._run.state_steps(), default=0) >= self._total:
            self._finish_without_training(cast(Learner, pl_module))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write step 0, or load the newest state of a run that goes on."""
        self._stop.install()
        remove_leftovers(self._run)
        module = cast(Learner, pl_module)
        if self._resumes:
            facts = self._trusted_facts()
            load_state(self._run, module, _optimizer(trainer))
            _say(f"Going on from {_told(facts)}.")
            self._finish_last_save(facts.step)
        self._save_what_is_due(trainer, module)
        self._stop_if_asked(trainer, module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """The weights are about to change: what a save still reads must be out of the way."""
        self._writer.before_update()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One Lightning batch is one optimizer step: this is a step boundary."""
        module = cast(Learner, pl_module)
        if not self._writer.busy:
            self._settle()
        self._save_what_is_due(trainer, module)
        if self._asked_to_save():
            self._save(trainer, module, checkpoint=False, state=True)
        self._stop_if_asked(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the save under way."""
        self._settle()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A save under way is of a step that was done: it is finished, unless somebody wants the process to end."""
        if isinstance(exception, KeyboardInterrupt):
            self._writer.abandon()
        else:
            self._writer.settle()

    def _trusted_facts(self) -> Facts:
        facts = read_facts(self._run)
        for note in check_origin(self._run.state(facts.step), facts, self._origin, new_course=self._new_course):
            _say(f"Mind: {note}; the rest of the run may differ in its last bits from one without this change.")
        return facts

    def _finish_without_training(self, module: Learner) -> None:
        remove_leftovers(self._run)
        facts = self._trusted_facts()
        module.steps_done, module.rows_seen, module.skipped = facts.step, facts.rows_seen, list(facts.skipped)
        if not self._run.checkpoint(facts.step).exists():
            check_content(self._run.state(facts.step), facts)
            with weights_of_state(self._run, facts.step) as weights:
                self._heed(self._writer.write_now([self._checkpoint_job(module, weights)]))
        self._finish_last_save(facts.step)
        if self._disk_is_low:
            self.stopped = f"no step is left to train, but {self._stop.reason}"

    def _finish_last_save(self, step: int) -> None:
        """What a killed process did not come to once its newest state, that of `step`, was whole."""
        if self._run.checkpoint_steps():
            point_latest(self._run)
        remove_older_states(self._run, step)

    def _asked_to_save(self) -> bool:
        request = self._run.save_request
        if not request.exists():
            return False
        request.unlink(missing_ok=True)
        return True

    def _save_what_is_due(self, trainer: pl.Trainer, module: Learner) -> None:
        step = module.steps_done
        checkpoint, state = self._plan.is_checkpoint(step, self._total), self._plan.is_state(step, self._total)
        self._save(trainer, module, checkpoint=checkpoint, state=state)

    def _stop_if_asked(self, trainer: pl.Trainer, module: Learner) -> None:
        at_the_end = module.steps_done >= self._total
        if self._stop.reason is None or self.stopped is not None or (at_the_end and not self._disk_is_low):
            return
        if not at_the_end:
            self._save(trainer, module, checkpoint=False, state=True)
        self._settle()
        newest = max(self._run.state_steps(), default=None)
        saved = "no state could be saved" if newest is None else f"the state of step {newest} is saved"
        self.stopped = f"stopped after step {module.steps_done}: {self._stop.reason}; {saved}"
        trainer.should_stop = True

    def _save(self, trainer: pl.Trainer, module: Learner, *, checkpoint: bool, state: bool) -> None:
        """Write what is wanted of this step, each once; beside the next step where there is one."""
        if not (checkpoint or state):
            return
        began_s = time.monotonic()
        self._settle()
        step = module.steps_done
        checkpoint = checkpoint and not self._run.checkpoint(step).exists()
        state = state and not self._run.state(step).exists()
        optimizer = _optimizer(trainer)
        goes_on = step < self._total and self._stop.reason is None
        beside = self._plan.background and goes_on and can_be_read_beside_kernels(optimizer)
        held = Held(self._plan.buffer_bytes()) if beside else None
        jobs = list(self._jobs(module, optimizer, held, checkpoint=checkpoint, state=state))
        if held is not None and self._has_room(jobs):
            self._writer.start(jobs, held)
        else:
            held = None
            self._wait_for_room(jobs)
            self._heed(self._writer.write_now(jobs))
        if jobs:
            self._under_way = Save(step, tuple(jobs), held, time.monotonic() - began_s)
        if held is None:
            self._settle()

    def _jobs(
        self, module: Learner, optimizer: Optimizer, held: Held | None, *, checkpoint: bool, state: bool
    ) -> Iterator[Job]:
        if not (checkpoint or state):
            return
        finish_device_work()  # what is read from another stream must be there
        learnt = module.learnt_tensors()
        weights = lazily(learnt if held is None else held.hold(learnt, readings=checkpoint + state), None)
        if checkpoint:
            yield self._checkpoint_job(module, weights)
        if state:
            snapshot = take_snapshot(module, optimizer, held, weights)
            what = f"the state of step {snapshot.step}"
            yield Job(what, snapshot.nbytes, lambda: write_snapshot(self._run, snapshot, self._origin))

    def _checkpoint_job(self, module: Learner, weights: Mapping[str, LazyTensor]) -> Job:
        step, dtype = module.steps_done, self._plan.weights
        facts = {"rows_seen": module.rows_seen, "skipped": len(module.skipped), **asdict(self._origin)}

        def write() -> object:
            return write_checkpoint(self._run, step, weights, self._base, self._lora_config, dtype, facts)

        written = lazily(weights, DTYPES[dtype if self._lora_config is None else "fp32"])
        return Job(f"checkpoint {step}", sum(tensor.nbytes for tensor in written.values()), write)

    def _wait_for_room(self, jobs: list[Job]) -> None:
        """Under `low_disk: wait`, hold the run here until the jobs fit or it is asked to stop."""
        if self._plan.low_disk == "stop" or self._may_not_wait() or self._has_room(jobs):
            return
        needed = told_size(sum(job.needed_bytes for job in jobs))
        what = " and ".join(job.what for job in jobs)
        _say(f"The disk is low: {what} takes {needed}. Training waits here until there is room under {self._run.root}.")
        while not (self._may_not_wait() or self._has_room(jobs)):
            time.sleep(POLL_S)

    def _may_not_wait(self) -> bool:
        return self._stop.reason is not None

    def _has_room(self, jobs: list[Job]) -> bool:
        return room_for(self._run.root, sum(job.needed_bytes for job in jobs))

    def _settle(self) -> None:
        """Wait for the save under way, and tell of it."""
        self._heed(self._writer.settle())
        save, self._under_way = self._under_way, None
        if save is not None:
            write_save(self._run, save, self._writer.took_s)

    def _heed(self, low: list[LowDisk]) -> None:
        if low:
            self._disk_is_low = True
            self._stop.request(f"{low[0]} (free some space before you go on)")


def _told(facts: Facts) -> str:
    size = told_size(sum(facts.size_bytes.values()))
    return f"the state of step {facts.step}: weights and optimizer state, {size}, every checksum as it was written"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _optimizer(trainer: pl.Trainer) -> Optimizer:
    return trainer.optimizers[0]
