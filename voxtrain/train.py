"""One run from seed to close: prepare, plan, load, train. The GPU is freed and loggers are closed in `finally`.

Validation is no business of this process: it starts when this one has let go of the card.
"""

from __future__ import annotations

import gc
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from voxtrain.door import tell
from voxtrain.durable import remove_if_empty, write_json, write_whole
from voxtrain.fault import DONE, FAILED, STOPPED, WRONG_INPUT, InputError, RunFailed, Stopped
from voxtrain.manifest.prepare import read_split
from voxtrain.memory.plan import MemoryPlan, fit_faults
from voxtrain.memory.remedies import remedies
from voxtrain.preflight import Start, resume_start
from voxtrain.run_folder import SPLITS, DataFolder, RunFolder
from voxtrain.run_plan import plan_memory, plan_work
from voxtrain.run_record import RunRecord
from voxtrain.settings import Settings, from_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pytorch_lightning import Callback, Trainer
    from torch import Tensor

    from voxtrain.checkpoint.callback import SaveCheckpoints
    from voxtrain.checkpoint.stop import StopRequest
    from voxtrain.data.datamodule import SpeechDataModule
    from voxtrain.model.module import VoxModule


@dataclass(frozen=True, slots=True)
class RunMemory:
    """The memory plan of a run, and what would save memory, in words."""

    plan: MemoryPlan
    remedies: str


def job(cfg: DictConfig) -> dict[str, Any]:
    """One Hydra job. Never raises and never exits, since that would take the other jobs of a sweep along.

    Returns the run folder and the exit code; in a sweep every outcome is in run.json too.
    """
    hydra = HydraConfig.get()
    overrides = tuple(hydra.overrides.task)
    folder = Path(hydra.runtime.output_dir)
    in_sweep = hydra.mode == RunMode.MULTIRUN
    if cfg.resume is not None:
        start = resume_start(folder, overrides)
    else:
        start = Start(from_config(cfg), RunFolder(folder), overrides, resumes=False)
    return {"run": str(folder), "exit_code": run_to_end(start, keep_record=in_sweep or start.resumes)}


def run_to_end(start: Start, *, keep_record: bool) -> int:
    """Train, and turn every way to end into an exit code and a run.json.

    A fault of the inputs leaves nothing behind, unless `keep_record`: then run.json tells of it.
    """
    record = RunRecord(start.run, start.overrides)
    try:
        train(start, record)
        record.close("finished", DONE)
    except InputError as error:
        code = tell(error)
        if not keep_record:
            shutil.rmtree(start.run.root, ignore_errors=True)
            remove_if_empty(start.run.root.parent, Path.cwd() / "outputs")
            return code
        record.close("refused", WRONG_INPUT, str(error))
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        record.close("stopped", STOPPED, str(stop))
    except RunFailed as error:
        record.close("failed", tell(error), str(error))
    except KeyboardInterrupt:
        record.close("interrupted", FAILED, "interrupted twice; the newest saved state is untouched")
    except Exception as error:
        _keep_traceback(start.run)
        message = f"{type(error).__name__}: {error}"
        print(f"\nThe run failed: {message}\nThe traceback is in {start.run.log}", file=sys.stderr)
        record.close("failed", FAILED, message)
    return record.exit_code


def _keep_traceback(run: RunFolder) -> None:
    with run.log.open("a", encoding="utf-8") as log:
        traceback.print_exc(file=log)


def train(start: Start, record: RunRecord) -> None:
    """Prepare the data, refuse what cannot fit, load the model and train it to the last step."""
    from voxtrain.environment import describe
    from voxtrain.metrics.noise import silence_third_parties

    settings, run = start.settings, start.run
    silence_third_parties()
    first_step = first_step_of(start)
    data = data_module(settings, run, first_step)
    data.prepare_data()
    plan = memory_plan(settings, run)
    write_whole(run.config, OmegaConf.to_yaml(OmegaConf.create(settings.plain)))
    write_json(run.environment, describe())
    record.write(total_steps=settings.train.total_steps(), resumed_from_step=first_step if start.resumes else None)
    data.setup("fit")
    module = vox_module(settings)
    began = time.monotonic()
    try:
        fit(start, module, data, plan)
    finally:
        record.add_train_seconds(time.monotonic() - began)
        record.write(steps=module.steps_done, skipped=list(module.skipped))
        del module, data
        free_the_gpu()


def data_module(settings: Settings, run: RunFolder, first_step: int) -> SpeechDataModule:
    """The rows of the run. The AudioVAE is loaded only for clips that have no cached latents yet."""
    from voxtrain.data.datamodule import SpeechDataModule
    from voxtrain.model import upstream
    from voxtrain.model.size import training_cfg_rate

    folder = settings.model.folder

    def encode(wave: NDArray[np.float32]) -> Tensor:
        return upstream.load_encoder(folder())(wave)

    return SpeechDataModule(
        source=settings.data,
        clean=settings.clean,
        split=settings.split,
        seed=settings.seed,
        batch_size=settings.train.batch_size,
        grad_accum=settings.train.grad_accum,
        max_positions=settings.memory.max_positions,
        first_step=first_step,
        total_steps=settings.train.total_steps(),
        folder=DataFolder(run.data),
        tokenize=upstream.load_tokenizer(folder()),
        encode=encode,
        vae_key=lambda: upstream.vae_key(folder()),
        cfg_rate=training_cfg_rate(settings.model.architecture),
    )


def memory_plan(settings: Settings, run: RunFolder) -> RunMemory:
    """The plan for the longest step of the actual rows. Raises InputError when it does not fit the card."""
    rows = [row for split in SPLITS for row in read_split(DataFolder(run.data), split)]
    work = plan_work(settings, rows)
    plan = plan_memory(settings, work, run.checkpoint_steps())
    told = "; ".join(map(str, remedies(work, settings.memory, plan, count=2)))
    faults = fit_faults(plan, settings.memory, told)
    if faults:
        raise InputError(*faults)
    return RunMemory(plan, told)


def vox_module(settings: Settings) -> VoxModule:
    """The model on its device, with its optimizer rule, schedule and memory stack."""
    import torch

    from voxtrain.model import upstream
    from voxtrain.model.module import VoxModule
    from voxtrain.model.tuning import LoraTuning

    upstream.release_encoder()
    device = torch.device("cuda", 0) if settings.trainer.accelerator == "cuda" else torch.device("cpu")
    lora = settings.tuning if isinstance(settings.tuning, LoraTuning) else None
    return VoxModule(
        upstream.load_model(settings.model.folder(), lora, device, torch.float32, settings.seed),
        settings.tuning,
        settings.optimizer,
        settings.schedule,
        weights_diff=settings.train.loss_weights.diff,
        weights_stop=settings.train.loss_weights.stop,
        loss_normalisation=settings.train.loss_normalisation,
        max_grad_norm=settings.train.max_grad_norm,
        total_steps=settings.train.total_steps(),
        state=settings.memory.state,
        autocast=settings.memory.autocast,
        activation_checkpointing=settings.memory.activation_checkpointing,
    )


def fit(start: Start, module: VoxModule, data: SpeechDataModule, memory: RunMemory) -> None:
    """Train to the last step. Raises Stopped when the run was asked to stop before it, RunFailed out of memory."""
    import torch

    from voxtrain.checkpoint.stop import StopRequest
    from voxtrain.memory.autopsy import autopsy, held

    first = first_step_of(start)
    with StopRequest() as stop:
        saver = _saver(start, stop)
        trainer = _trainer(start.settings, [*_listeners(start, memory, first), saver])
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit:  # what Lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
        except torch.OutOfMemoryError as error:
            raise autopsy(
                error,
                plan=memory.plan,
                now=held(module.device),
                steps_done=module.steps_done,
                first_step=first,
                run=start.run,
                remedies=memory.remedies,
            ) from error
    if saver.stopped is not None:
        raise Stopped(f"{saver.stopped}\nGo on with: python -m voxtrain resume={start.run.root}")


def first_step_of(start: Start) -> int:
    """The updates done before this sitting."""
    return max(start.run.state_steps(), default=0) if start.resumes else 0


def _listeners(start: Start, memory: RunMemory, first_step: int) -> list[Callback]:
    """Who hears of each step, before it is saved: a state of step N must find its N rows in metrics.csv."""
    from voxtrain.memory.watch import WatchMemory
    from voxtrain.metrics.progress import TrainingProgress
    from voxtrain.metrics.step_log import StepLog

    settings, run = start.settings, start.run
    page = settings.logger.callback(run, settings.plain, settings.name)
    progress = TrainingProgress(settings.train.total_steps(), first_step)
    return [StepLog(run, first_step), *([page] if page else []), WatchMemory(run, memory.plan), progress]


def _saver(start: Start, stop: StopRequest) -> SaveCheckpoints:
    from voxtrain.checkpoint.callback import SaveCheckpoints

    settings = start.settings
    return SaveCheckpoints(
        start.run,
        settings.checkpoint,
        settings.train.total_steps(),
        base=settings.model.folder().resolve(),
        lora_config=settings.tuning.lora_config(),
        settings=settings.plain,
        stop=stop,
        resumes=start.resumes,
    )


def _trainer(settings: Settings, callbacks: list[Callback]) -> Trainer:
    import pytorch_lightning as pl

    return pl.Trainer(
        accelerator=settings.trainer.accelerator,
        devices=settings.trainer.devices,
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


def free_the_gpu() -> None:
    """Let go of what the run held, so that the post-hoc process has the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
