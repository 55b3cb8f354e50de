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
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from voxtrain.assembly import RunMemory, data_module, memory_plan, vox_module
from voxtrain.checkpoint.facts import way_on
from voxtrain.checkpoint.lock import held
from voxtrain.checkpoint.stop import interrupted_by_signals
from voxtrain.door import tell
from voxtrain.durable import read_json, read_log_rows, remove_if_empty, write_json, write_whole
from voxtrain.fault import DONE, FAILED, STOPPED, WRONG_INPUT, InputError, RunFailed, Stopped
from voxtrain.fit import first_step_of, fit
from voxtrain.preflight import Start, steps_for_nothing
from voxtrain.run_folder import RunFolder
from voxtrain.run_record import RunRecord
from voxtrain.settings import from_config

if TYPE_CHECKING:
    from voxtrain.data.datamodule import SpeechDataModule
    from voxtrain.ranks.group import Ranks


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

    Where another process trains this run already, its files are left alone.
    """
    try:
        with held(start.run.training_lock, "training"):
            return _to_end(start, in_sweep=in_sweep)
    except InputError as error:
        return tell(error)
    except OSError as error:
        return tell(_file_failed(start.run, error))


def _to_end(start: Start, *, in_sweep: bool) -> int:
    """Train in a folder that is ours alone.

    Where nothing was started, nothing is left: a new run's folder goes (in a sweep run.json tells of it instead), and
    a run that was to go on is as it was.
    """
    record = RunRecord(start.run, start.overrides)
    before = {path: path.read_bytes() for path in (start.run.config, start.run.run) if start.resumes and path.is_file()}
    try:
        with interrupted_by_signals():
            if not start.resumes:
                record.write()  # whose run this is can be told from the beginning
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
    except KeyboardInterrupt as interrupt:
        return _interrupted(start, record, before, str(interrupt) or "interrupted", in_sweep=in_sweep)
    except OSError as error:
        record.close("failed", tell(_file_failed(start.run, error)), str(error))
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


def _interrupted(start: Start, record: RunRecord, before: Mapping[Path, bytes], why: str, *, in_sweep: bool) -> int:
    """Tell of an interrupt that did not wait for a step boundary: before training, or a second Ctrl-C."""
    states = start.run.state_steps()
    if states:
        message = f"{why}; the state of step {states[-1]} is saved"
        print(f"\n{message}\nGo on with: python -m voxtrain resume={start.run.root}", file=sys.stderr)
    else:
        message = f"{why} before anything was learnt; nothing is left to go on from"
        print(f"\n{message}", file=sys.stderr)
        if not in_sweep:
            _as_before(start, before)
            return FAILED
    record.close("interrupted", FAILED, message)
    return FAILED


def _file_failed(run: RunFolder, error: OSError) -> RunFailed:
    with suppress(OSError):  # the log may lie on the disk that failed; the message says what there is to know
        _log_traceback(run)
    return RunFailed(f"{error.strerror or error}: {error.filename or 'a file'}\n{way_on(run)}")


def _keep_traceback(run: RunFolder) -> None:
    """In the log, or on stderr where the log cannot be written."""
    try:
        _log_traceback(run)
    except OSError:
        traceback.print_exc()


def _log_traceback(run: RunFolder) -> None:
    with run.log.open("a", encoding="utf-8") as log:
        traceback.print_exc(file=log)


def train(start: Start, record: RunRecord) -> None:
    """Prepare the data, refuse what cannot fit, load the model and train it to the last step."""
    from voxtrain.metrics.noise import silence_third_parties
    from voxtrain.ranks.group import ALONE

    silence_third_parties()
    if start.settings.trainer.devices > 1:
        _train_together(start, record)
        return
    data, memory = prepared(start)
    _begin(start, record)
    data.setup("fit")
    module = vox_module(start.settings, ALONE)
    began = time.monotonic()
    try:
        fit(start, module, data, memory, ALONE)
    finally:
        record.add_train_seconds(time.monotonic() - began)
        record.note(steps=module.steps_done, skipped=list(module.skipped))
        del module, data
        free_the_gpu()


def prepared(start: Start) -> tuple[SpeechDataModule, RunMemory]:
    """Rows audited, cleaned and split, and the memory plan that they fit. Raises InputError."""
    from voxtrain.environment import describe
    from voxtrain.ranks.group import ALONE

    data = data_module(start.settings, start.run, first_step_of(start), ALONE)
    data.prepare_data()
    memory = memory_plan(start.settings, start.run)
    write_whole(start.run.config, OmegaConf.to_yaml(OmegaConf.create(start.settings.plain)))
    write_json(start.run.environment, describe())
    return data, memory


def _begin(start: Start, record: RunRecord) -> None:
    for fault in steps_for_nothing(start.settings):
        print(f"Warning: {fault.where}: {fault.what}.\n  -> {fault.remedy}", file=sys.stderr)
    record.write(
        total_steps=start.settings.train.total_steps(),
        resumed_from_step=first_step_of(start) if start.resumes else None,
        processes=start.settings.trainer.devices,
    )


def _train_together(start: Start, record: RunRecord) -> None:
    """The same in several processes. This one only starts them: it never touches a GPU, whose memory is all theirs."""
    from voxtrain.checkpoint.stop import StopRequest
    from voxtrain.ranks.launch import run_ranks

    trainer = start.settings.trainer
    memory = run_ranks(partial(prepare_apart, start), 1, "cpu")
    _begin(start, record)
    began = time.monotonic()
    try:
        with StopRequest() as stop:
            stopped = run_ranks(
                partial(learn, start, memory), trainer.devices, trainer.accelerator, lambda: stop.reason
            )
    finally:
        record.add_train_seconds(time.monotonic() - began)
        rows = read_log_rows(start.run.metrics)
        skipped = [int(row["step"]) for row in rows if row["train/skipped"] == "1"]
        record.note(steps=int(rows[-1]["step"]) if rows else 0, skipped=skipped)
    if stopped is not None:
        raise Stopped(stopped)


def prepare_apart(start: Start, _: Ranks) -> RunMemory:
    """What comes before the ranks, in a process of its own: it may use a GPU to encode audio."""
    from voxtrain.metrics.noise import silence_third_parties

    silence_third_parties()
    data, memory = prepared(start)
    data.setup("fit")
    return memory


def learn(start: Start, memory: RunMemory, ranks: Ranks) -> str | None:
    """The part of one rank. Returns why the run stopped early, None where it did not."""
    from voxtrain.metrics.noise import silence_third_parties

    silence_third_parties()
    data = data_module(start.settings, start.run, first_step_of(start), ranks)
    data.setup("fit")
    try:
        fit(start, vox_module(start.settings, ranks), data, memory, ranks)
    except Stopped as stop:
        return str(stop)
    return None


def free_the_gpu() -> None:
    """Let go of what the run held, so that the post-hoc process has the card."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
