"""A run folder whose checkpoints are of the measured shape, and what judging it took in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.shape import SEED
from voxtrain.checkpoint.writer import write_checkpoint
from voxtrain.durable import write_jsonl, write_whole
from voxtrain.manifest.row import Row
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.settings import compose

GIB = 2**30
MEASURED = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)
"""Runs a command, and says its peak in KiB. A small process in between: what a child's peak counts from is that of the
process that starts it, and a benchmark holds a model."""


@dataclass(frozen=True)
class Judged:
    """What `python -m voxtrain.validation RUN` took."""

    exit_code: int
    seconds: float
    peak_gib: float  # resident, of the whole process: Python, torch and all libraries included
    said: str


def judged_run(root: Path, folder: Path, rows: Sequence[Row], steps: Sequence[int]) -> RunFolder:
    """A run of full fine-tuning whose base is the model in `folder`; its checkpoints are copies of it, in fp32.

    It names the tiny model, which nobody builds: a full checkpoint is all that judging needs.
    """
    run = RunFolder(root)
    settings = compose(["+recipe=demo", f"seed={SEED}", f"data.cache_dir={root / 'cache'}"])
    write_whole(run.config, OmegaConf.to_yaml(OmegaConf.create(settings.plain)))
    write_jsonl(DataFolder(run.data).rows("validation"), [row.to_record() for row in rows])
    tensors: Mapping[str, Tensor] = load_file(folder / "model.safetensors")
    for step in steps:
        write_checkpoint(run, step, tensors, folder, None, "fp32", {"rows_seen": step})
    return run


def judge_apart(run: RunFolder, threads: int) -> Judged:
    """Judge the run in a fresh process, and wait for it."""
    command = [sys.executable, "-m", "voxtrain.validation", str(run.root), "validation.device=cpu"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        cwd=Path(__file__).parents[1],
    )
    seconds = time.perf_counter() - began
    said, _, peak_kib = done.stdout.strip().rpartition("\n")
    return Judged(done.returncode, seconds, int(peak_kib) * 1024 / GIB, said)
