"""What the front door does for memory, in processes of its own: refusals, the allocator's setting, the plan's cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from voxtrain.assembly import memory_plan
from voxtrain.durable import read_json, write_jsonl
from voxtrain.fault import InputError
from voxtrain.manifest.row import Row
from voxtrain.memory.stack import ALLOCATOR_NAMES
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.settings import compose

pytestmark = pytest.mark.slow
SHORT = ("train.max_steps=2", "checkpoint.every=2", "checkpoint.state_every=2", "validation.when=never")


def door(*arguments: str, cwd: Path, room: str = "voxtrain", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ALLOCATOR_NAMES}
    command = [sys.executable, "-m", room, *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**environment, **variables}, capture_output=True, text=True, check=False, timeout=170
    )


def test_plain_bf16_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = door("+recipe=full_sft_16gb", "memory.rounding=nearest", "data.manifest=rows.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "rounds 82 to 98 % of its updates to plain bf16 weights away; say memory.rounding=stochastic" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("users", "in_force"),
    [
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}),
    ],
)
def test_segments_are_expandable_unless_the_user_set_something(
    tmp_path: Path, users: dict[str, str], in_force: dict[str, str]
) -> None:
    """A whole run: environment.json holds what its process trained under."""
    wanted = ("+recipe=demo", "memory.expandable_segments=true", *SHORT, "hydra.run.dir=run")
    done = door(*wanted, cwd=tmp_path, OMP_NUM_THREADS="1", **users)
    assert done.returncode == 0, done.stderr
    told = read_json(RunFolder(tmp_path / "run").environment)["variables"]
    assert {name: told.get(name) for name in ALLOCATOR_NAMES if told.get(name)} == in_force


@pytest.mark.parametrize("recipe", ["full_sft_24gb", "full_sft_12gb"])
def test_the_plan_of_the_full_size_model_takes_a_minute_and_4_gb_at_most(tmp_path: Path, recipe: str) -> None:
    command = [sys.executable, "-m", "voxtrain.memory", f"+recipe={recipe}", "--json"]
    began = time.monotonic()
    with (tmp_path / "plan.json").open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert used.ru_utime + used.ru_stime < 60  # of one core: wall time would count what else the machine does
    assert time.monotonic() - began < 600
    assert used.ru_maxrss * 1024 < 4e9
    assert json.loads((tmp_path / "plan.json").read_text())["peak_gib"] > 5


def test_what_cannot_fit_the_card_is_refused_and_force_goes_on(tmp_path: Path) -> None:
    wanted = ("+recipe=demo", "memory=80gb", "memory.autocast=false", "memory.card=1gb", *SHORT)
    done = door(*wanted, "hydra.run.dir=run", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 2, done.stderr
    for part in ("memory.card = 1gb", "the run needs 0.5", "in its checkpoint write", "memory.force=true"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert RunFolder(tmp_path / "run").checkpoint_steps() == []
    done = door(*wanted, "memory.force=true", "hydra.run.dir=forced", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


def test_vanilla_adamw_of_the_full_model_is_refused_on_24_gb_with_the_arithmetic(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = compose(["+recipe=full_sft_80gb", "memory.card=24gb", "data.manifest=rows.jsonl"])
    monkeypatch.setattr(type(settings.model), "folder", lambda _: tiny_folder)  # its tokenizer is asked for, no more
    run = RunFolder(tmp_path)
    row = Row("a", str(tmp_path / "a.wav"), "a few words", 1, "a", 20.0, None, None, None)
    write_jsonl(DataFolder(run.data).rows("train"), [row.to_record()])
    with pytest.raises(InputError) as refused:
        memory_plan(settings, run)
    said = str(refused.value)
    for part in ("weights 8.53", "gradients 8.53", "optimizer_on_card 17.06", "24.00 GiB", "memory.state=paged_8bit"):
        assert part in said
