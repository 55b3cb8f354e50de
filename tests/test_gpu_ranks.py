"""What only two CUDA GPUs can show: two processes over NCCL learn what one learns, and the run goes on with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from voxtrain.durable import read_json, read_log_rows
from voxtrain.run_folder import RunFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]

STEPS = 12


def run(folder: Path, cache: Path, *arguments: str) -> RunFolder:
    """A run of the tiny model in fp32 that has to end well."""
    command = [sys.executable, "-m", "voxtrain", *arguments]
    environment = {**os.environ, "VOXTRAIN_CACHE": str(cache), "NVIDIA_TF32_OVERRIDE": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder)


def test_two_gpus_learn_what_one_learns_and_one_goes_on(tmp_path: Path, cache: Path) -> None:
    steps = (f"train.max_steps={STEPS}", "checkpoint.every=6", "checkpoint.state_every=6", "memory.card=80gb")
    losses = {}
    for name, trainer in (("one", "trainer=one_gpu"), ("two", "trainer=ddp")):
        devices = ["trainer.devices=2"] if name == "two" else []
        folder = tmp_path / name
        done = run(folder, cache, "+recipe=demo", trainer, *devices, *steps, f"hydra.run.dir={folder}")
        losses[name] = [float(row["train/loss/total"]) for row in read_log_rows(done.metrics)]
        assert read_json(done.run)["processes"] == len(devices) + 1
    assert len(losses["one"]) == STEPS
    # fp32 sums in another order, through a dozen updates; two gloo processes on a CPU differ by 1.1e-7 after five
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-4)
    again = run(
        tmp_path / "two", cache, f"resume={tmp_path / 'two'}", "trainer.devices=1", f"train.max_steps={STEPS + 6}"
    )
    assert read_json(again.run)["resumed_from_step"] == STEPS
