"""One run from seed to close: prepare, plan, load, train. The GPU is freed and loggers are closed in `finally`.

Validation is no business of this process: it starts when this one has let go of the card.
"""

from __future__ import annotations

import gc
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from voxtrain.door import tell
from voxtrain.durable import remove_if_empty, write_json, write_whole
from voxtrain.fault import DONE, FAILED, STOPPED, WRONG_INPUT, InputError, RunFailed, Stopped
from voxtrain.fit import RunMemory, first_step_of, fit
from voxtrain.manifest.prepare import read_split
from voxtrain.memory.plan import fit_faults
from voxtrain.memory.remedies import remedies
from voxtrain.preflight import Start
from voxtrain.run_folder import SPLITS, DataFolder, RunFolder
from voxtrain.run_plan import plan_memory, plan_work
from voxtrain.run_record import RunRecord
from voxtrain.settings import Settings, from_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from voxtrain.data.datamodule import SpeechDataModule
    from voxtrain.model.module import VoxModule


def sweep_job(cfg: DictConfig) -> dict[str, Any]:
    """One job of a multirun. Never raises and never exits, since that would take the other jobs along.

    Returns the run folder and the exit code; the outcome is in run.json too.
    """
    hydra = HydraConfig.get()
    run = RunFolder(Path(hydra.runtime.output_dir))
    start = Start(from_config(cfg), run, tuple(hydra.overrides.task), resumes=False)
    return {"run": str(run.root), "exit_code": run_to_end(start, keep_record=True)}


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


def free_the_gpu() -> None:
    """Let go of what the run held, so that the post-hoc process has the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
