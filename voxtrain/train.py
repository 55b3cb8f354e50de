"""One run from seed to close: prepare, plan, load, train. The GPU is freed and loggers are closed in `finally`.

Validation is no business of this process: it starts when this one has let go of the card.
"""

from __future__ import annotations

import gc
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from voxtrain.door import tell
from voxtrain.durable import read_json, remove_if_empty, write_json, write_whole
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

    Returns the run folder and the exit code; the outcome is in run.json too. A job that comes after one that was
    interrupted is not started: Ctrl-C is meant for the sweep.
    """
    hydra = HydraConfig.get()
    run = RunFolder(Path(hydra.runtime.output_dir))
    start = Start(from_config(cfg), run, tuple(hydra.overrides.task), resumes=False)
    stopped = _interrupted_before(run)
    if stopped is not None:
        record = RunRecord(run, start.overrides)
        record.close("not_started", STOPPED, f"{stopped} was interrupted before this job began")
        return {"run": str(run.root), "exit_code": STOPPED}
    return {"run": str(run.root), "exit_code": run_to_end(start, in_sweep=True)}


def _interrupted_before(run: RunFolder) -> str | None:
    """The name of a job of the same sweep that somebody interrupted."""
    for other in sorted(run.root.parent.glob("*/run.json")):
        record = read_json(other)
        if record["status"] == "interrupted" or (record["status"] == "stopped" and "SIGINT" in record["message"]):
            return other.parent.name
    return None


def run_to_end(start: Start, *, in_sweep: bool) -> int:
    """Train, and turn every way to end into an exit code and a run.json.

    Where nothing was started, nothing is left: a new run's folder goes (in a sweep run.json tells of it instead), and
    a run that was to go on is as it was.
    """
    record = RunRecord(start.run, start.overrides)
    before = {path: path.read_bytes() for path in (start.run.config, start.run.run) if start.resumes and path.is_file()}
    try:
        train(start, record)
        start.run.post_hoc.unlink(missing_ok=True)  # what an earlier sitting's checkpoints were given says nothing now
        record.close("finished", DONE)
    except InputError as error:
        code = tell(error)
        if not in_sweep:
            _as_before(start, before)
            return code
        record.close("refused", WRONG_INPUT, str(error))
    except Stopped as stop:
        print(f"\n{stop}", file=sys.stderr)
        record.close("stopped", STOPPED, str(stop))
    except RunFailed as error:
        record.close("failed", tell(error), str(error))
    except KeyboardInterrupt:
        return _interrupted(start, record, before, in_sweep=in_sweep)
    except Exception as error:
        _keep_traceback(start.run)
        message = f"{type(error).__name__}: {error}"
        print(f"\nThe run failed: {message}\nThe traceback is in {start.run.log}", file=sys.stderr)
        record.close("failed", FAILED, message)
    return record.exit_code


def _as_before(start: Start, before: Mapping[Path, bytes]) -> None:
    if start.resumes:
        for path, content in before.items():
            write_whole(path, content)
        return
    shutil.rmtree(start.run.root, ignore_errors=True)
    remove_if_empty(start.run.root.parent, Path.cwd() / "outputs")


def _interrupted(start: Start, record: RunRecord, before: Mapping[Path, bytes], *, in_sweep: bool) -> int:
    """Tell of an interrupt that did not wait for a step boundary: before training, or a second Ctrl-C."""
    states = start.run.state_steps()
    if states:
        message = f"interrupted; the state of step {states[-1]} is saved"
        print(f"\n{message}\nGo on with: python -m voxtrain resume={start.run.root}", file=sys.stderr)
    else:
        message = "interrupted before anything was learnt; nothing is left to go on from"
        print(f"\n{message}", file=sys.stderr)
        if not in_sweep:
            _as_before(start, before)
            return FAILED
    record.close("interrupted", FAILED, message)
    return FAILED


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
    held = settings.memory.weights if lora is None else settings.memory.frozen
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[held]
    return VoxModule(
        upstream.load_model(settings.model.folder(), lora, device, dtype, settings.seed),
        settings.tuning,
        settings.optimizer,
        settings.schedule,
        weights_diff=settings.train.loss_weights.diff,
        weights_stop=settings.train.loss_weights.stop,
        weight_stop_positive=settings.train.loss_weights.stop_positive,
        loss_normalisation=settings.train.loss_normalisation,
        max_grad_norm=settings.train.max_grad_norm,
        total_steps=settings.train.total_steps(),
        state=settings.memory.state,
        autocast=settings.memory.autocast,
        activation_checkpointing=settings.memory.activation_checkpointing,
        rounding=settings.memory.rounding,
        seed=settings.seed,
    )


def free_the_gpu() -> None:
    """Let go of what the run held, so that the post-hoc process has the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
