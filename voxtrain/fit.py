"""Training proper: the Trainer of a run, who hears of each step, and how an early end is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from voxtrain.assembly import RunMemory
from voxtrain.checkpoint.facts import way_on
from voxtrain.fault import RunFailed, Stopped
from voxtrain.preflight import Start
from voxtrain.settings import Settings

if TYPE_CHECKING:
    from pytorch_lightning import Callback, Trainer

    from voxtrain.checkpoint.callback import SaveCheckpoints
    from voxtrain.checkpoint.stop import StopRequest
    from voxtrain.data.datamodule import SpeechDataModule
    from voxtrain.memory.probe import ProbeMemory
    from voxtrain.metrics.outliers import OutlierTrace
    from voxtrain.model.module import VoxModule
    from voxtrain.ranks.group import Ranks


def fit(start: Start, module: VoxModule, data: SpeechDataModule, memory: RunMemory, ranks: Ranks) -> None:
    """Train to the last step. Raises Stopped when the run was asked to stop before it, RunFailed out of memory.

    Of several ranks rank 0 alone writes to the run folder and tells of it; a stop is Stopped on rank 0 alone.
    """
    import torch

    from voxtrain.checkpoint.stop import SIGNALS, WITHOUT_INTERRUPT, StopRequest
    from voxtrain.memory.autopsy import autopsy, held
    from voxtrain.memory.probe import ProbeMemory

    first = first_step_of(start)
    with StopRequest(SIGNALS if ranks.size == 1 else WITHOUT_INTERRUPT) as stop:
        saver = _saver(start, stop) if ranks.rank == 0 else None
        probe = ProbeMemory(data.longest_step, first) if start.settings.memory.probe else None
        listeners = [] if saver is None else _listeners(start, memory, data, first, probe)
        judging = [] if saver is None else _judging(start)  # after the saver: what it has saved can be judged
        callbacks = [
            *filter(None, [probe]),
            *listeners,
            *_together(start, stop, ranks),
            *filter(None, [saver]),
            *judging,
        ]
        trainer = _trainer(start.settings, callbacks, ranks)
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
        except torch.OutOfMemoryError as error:
            raise autopsy(
                error,
                plan=memory.plan,
                now=held(module, trainer.optimizers),
                steps_done=module.steps_done,
                first_step=first,
                run=start.run,
                remedies=memory.remedies(),
                at_work=module.at_work,
                probing=probe is not None and probe.under_way,
            ) from error
    if saver is not None and saver.stopped is not None:
        if not start.run.state_steps():
            raise RunFailed(f"{saver.stopped}\n{way_on(start.run)}")
        raise Stopped(f"{saver.stopped}\nGo on with: python -m voxtrain resume={start.run.root}")


def first_step_of(start: Start) -> int:
    """The updates done before this sitting."""
    return max(start.run.state_steps(), default=0) if start.resumes else 0


def _listeners(
    start: Start, memory: RunMemory, data: SpeechDataModule, first_step: int, probe: ProbeMemory | None
) -> list[Callback]:
    """Who hears of each step, before it is saved: a state of step N must find its N rows in metrics.csv."""
    from voxtrain.memory.watch import WatchMemory
    from voxtrain.metrics.progress import TrainingProgress
    from voxtrain.metrics.step_log import StepLog

    settings, run = start.settings, start.run
    page = settings.logger.callback(run, settings.plain, settings.name)
    progress = TrainingProgress(settings.train.total_steps(), first_step)
    listeners = (
        StepLog(run, first_step),
        page,
        WatchMemory(run, memory.plan, probe),
        progress,
        _outlier_trace(start, data, first_step),
    )
    return [listener for listener in listeners if listener is not None]


def _outlier_trace(start: Start, data: SpeechDataModule, first_step: int) -> OutlierTrace | None:
    from voxtrain.metrics.outliers import OutlierTrace

    wanted = start.settings.train.outliers
    if wanted is None:
        return None
    return OutlierTrace(
        start.run,
        data.rows("train"),
        first_step,
        window=wanted.window,
        threshold=wanted.threshold,
        history=wanted.history,
    )


def _saver(start: Start, stop: StopRequest) -> SaveCheckpoints:
    from voxtrain.checkpoint.callback import SaveCheckpoints
    from voxtrain.environment import package_versions

    settings = start.settings
    return SaveCheckpoints(
        start.run,
        settings.checkpoint,
        settings.train.total_steps(),
        base=settings.model.folder().resolve(),
        lora_config=settings.tuning.adapter_config(),
        settings=settings.plain,
        stop=stop,
        resumes=start.resumes,
        versions=package_versions(),
    )


def _judging(start: Start) -> list[Callback]:
    from voxtrain.validation.beside import JudgeBeside

    return [JudgeBeside(start.run)] if start.settings.validation.when == "after_each_checkpoint" else []


def _together(start: Start, stop: StopRequest, ranks: Ranks) -> list[Callback]:
    """What keeps this rank with the others; nothing where there are none."""
    from voxtrain.checkpoint.together import FollowRankZero, KeepTogether

    if ranks.size == 1:
        return []
    keeper = KeepTogether(ranks, start.settings.checkpoint, start.settings.train.total_steps(), stop)
    return [keeper] if ranks.rank == 0 else [keeper, FollowRankZero(start.run, stop, start.resumes)]


def _trainer(settings: Settings, callbacks: list[Callback], ranks: Ranks) -> Trainer:
    """Lightning's, on one device: of several ranks it knows nothing."""
    import pytorch_lightning as pl

    return pl.Trainer(
        accelerator=settings.trainer.accelerator,
        devices=[ranks.rank] if settings.trainer.accelerator == "cuda" else 1,
        max_epochs=1,  # the loader ends at the last step
        callbacks=callbacks,
        plugins=_slurm_leaves_signals_to_us(),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _slurm_leaves_signals_to_us() -> list[Any]:
    """Lightning requeues on SIGUSR1 by itself, on top of submitit's doing so."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
