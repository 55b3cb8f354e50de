"""What keeps the ranks of a run together between two steps: one decision about stopping, and weights that are equal.

Rank 0 leads: it alone writes, so it alone stops for a full disk, and when it ends the run has ended. The others tell
it what reached them alone, and look with it before a save whether all of them still hold the same weights.
"""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl

from voxtrain.checkpoint.plan import CheckpointPlan
from voxtrain.checkpoint.resume import load_state
from voxtrain.checkpoint.snapshot import Learner
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.ranks.agreement import check_equal_weights
from voxtrain.ranks.group import Ranks
from voxtrain.run_folder import RunFolder


class KeepTogether(pl.Callback):
    """Every rank has one. On rank 0 it stands after those that write of a step, and before the one that saves it."""

    def __init__(self, ranks: Ranks, plan: CheckpointPlan, total_steps: int, stop: StopRequest) -> None:
        super().__init__()
        self._ranks, self._plan, self._total, self._stop = ranks, plan, total_steps, stop
        ranks.listen(stop.request)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree whether this step is the last; where it may be saved, check the weights. Raises RunFailed."""
        module = cast(Learner, pl_module)
        reasons = self._ranks.gather(self._stop.reason)
        reason = next((reason for reason in reasons if reason is not None), None)
        if batch_idx == 0 or reason is not None or self._is_saved(module.steps_done):
            check_equal_weights(self._ranks, module.learnt_tensors(), module.steps_done)
        if reason is not None:
            self._stop.request(reason)
            trainer.should_stop = trainer.should_stop or self._ranks.rank > 0  # on rank 0 by the callback that saves

    def _is_saved(self, step: int) -> bool:
        return self._plan.is_checkpoint(step, self._total) or self._plan.is_state(step, self._total)


class FollowRankZero(pl.Callback):
    """What a rank other than 0 has in place of the callback that saves: it reads what rank 0 reads."""

    def __init__(self, run: RunFolder, stop: StopRequest, resumes: bool) -> None:
        super().__init__()
        self._run, self._stop, self._resumes = run, stop, resumes

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the newest state of a run that goes on; rank 0 cannot replace it before a step was made together."""
        self._stop.install()  # Lightning has just taken SIGTERM
        if self._resumes:
            load_state(self._run, cast(Learner, pl_module), trainer.optimizers[0])
