"""What follows training: validate, listen, select, report; each in a process of its own that holds no optimizer state.

Hydra calls `LaunchPostHoc` at the end of a job and swallows whatever it raises, so that exit codes go through
`evaluation/post_hoc.json`. Hydra imports this file even for --help: nothing heavy stands at the top.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from voxtrain.durable import read_json, write_json
from voxtrain.fault import DONE, FAILED
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig

STAGES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("validate", "voxtrain.validation", ("--brief",)),
    ("listen", "voxtrain.listening", ()),
    ("select", "voxtrain.validation", ("--select-only",)),
    ("report", "voxtrain.report", ()),
)
"""Name, module and flags of each process, in their order. One that fails stops none of the others."""

TRAINING_ONLY = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_"),
    *("PL_", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "WANDB_SERVICE", "WANDB_RUN_ID"),
)
"""How the names of variables begin that belong to the training process: its ranks, its allocator, its logger."""


class LaunchPostHoc(Callback):
    """Starts the post-hoc processes of a job that has trained to its end."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Hydra's hook. Never raises; what went wrong stands in post_hoc.json."""
        from hydra.core.utils import JobStatus

        if job_return.status != JobStatus.COMPLETED:  # it raised, which Hydra shows
            return
        outcome = job_return.return_value
        try:
            if outcome["exit_code"] == DONE and is_wanted(Path(outcome["run"])):
                run_chain(Path(outcome["run"]))
        except KeyboardInterrupt:
            print(f"\nInterrupted. To go on: python -m voxtrain resume={outcome['run']}", file=sys.stderr)
        except Exception as error:
            print(f"\nAfter training: {type(error).__name__}: {error}", file=sys.stderr)


def is_wanted(run: Path) -> bool:
    """Whether the run's own settings ask for it (a resumed run's are not those that Hydra composed)."""
    from omegaconf import OmegaConf

    return bool(OmegaConf.load(RunFolder(run).config).validation.when != "never")


def has_ended_well(run: Path) -> bool:
    """Whether all that follows training has run, and well."""
    outcome = RunFolder(run).post_hoc
    return outcome.is_file() and int(read_json(outcome)["exit_code"]) == DONE


def outcome_code(run: Path) -> int:
    """The exit code of what follows a training that ended well; FAILED also where it was wanted and never began."""
    return DONE if has_ended_well(run) or not is_wanted(run) else FAILED


def run_chain(run: Path) -> int:
    """Validate, listen, select and report; returns DONE when all did, else FAILED.

    Each process gets a clean environment; what it says goes to the terminal and to `evaluation/post_hoc.log`. Until
    the last has ended, `post_hoc.json` says FAILED.
    """
    folder = RunFolder(run.resolve())
    folder.evaluation.mkdir(parents=True, exist_ok=True)
    stages: list[dict[str, Any]] = []
    for name, module, flags in STAGES:
        _write_outcome(folder, stages)
        stages.append(_stage(name, [sys.executable, "-m", module, str(folder.root), *flags], folder))
    return _write_outcome(folder, stages)


def _stage(name: str, command: list[str], folder: RunFolder) -> dict[str, Any]:
    from voxtrain.validation.stream import run_streamed

    began = time.monotonic()
    with folder.post_hoc_log.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
    try:
        code, why = run_streamed(command, clean_environment(), folder.post_hoc_log), ""
    except OSError as error:
        code, why = FAILED, str(error)
    if code != DONE:
        print(f"`{' '.join(command)}` ended with exit code {code}. {why}".rstrip(), file=sys.stderr)
    return {"name": name, "command": command, "exit_code": code, "seconds": round(time.monotonic() - began, 3)}


def _write_outcome(folder: RunFolder, stages: list[dict[str, Any]]) -> int:
    complete = len(stages) == len(STAGES) and all(stage["exit_code"] == DONE for stage in stages)
    code = DONE if complete else FAILED
    write_json(folder.post_hoc, {"exit_code": code, "steps": stages})
    return code


def clean_environment() -> dict[str, str]:
    """Ours, without what belongs to training, and with output that is not held back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(TRAINING_ONLY)}
    return kept | {"PYTHONUNBUFFERED": "1"}
