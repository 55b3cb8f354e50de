"""What only a CUDA GPU can show, with the tiny model: the published stack runs, pages its state, and resumes paged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_batches import micro_batch, one_row

from voxtrain.durable import read_json, read_log_rows
from voxtrain.model.loss import position_losses
from voxtrain.model.upstream import load_model
from voxtrain.run_folder import RunFolder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

STACK = ("memory=24gb", "trainer=one_gpu", "train.max_steps=12", "checkpoint.every=6", "checkpoint.state_every=6")


def voxtrain(*arguments: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "voxtrain", *arguments]
    environment = {**os.environ, "VOXTRAIN_CACHE": str(cache)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=600)


def test_losses_on_the_card_equal_those_on_the_cpu(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    batch = micro_batch([one_row(0, text=5, audio=9), one_row(1, text=3, audio=4)])
    losses = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        model = load_model(tiny_folder, None, device, torch.float32)
        losses.append(position_losses(model, batch.to(device), activation_checkpointing=False))
    # fp32 sums are taken in another order; a value at the edge of a quantiser step could move one position further
    torch.testing.assert_close(losses[1].diff.cpu(), losses[0].diff, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(losses[1].stop.cpu(), losses[0].stop, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recipe", ["demo", "lora_demo"])
def test_the_published_stack_runs_and_goes_on(recipe: str, tmp_path: Path, cache: Path) -> None:
    done = voxtrain(f"+recipe={recipe}", *STACK, "hydra.run.dir=run", cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "run")
    assert [int(row["step"]) for row in read_log_rows(run.metrics)] == list(range(1, 13))
    measured = read_json(run.memory)["measured"]
    assert measured["card_peak_gib"] > 0
    assert measured["allocated_peak_gib"] <= measured["reserved_peak_gib"]
    assert read_json(run.environment)["variables"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"

    more = voxtrain(
        f"resume={run.root}", "train.max_steps=18", "train.schedule_on_resume=new", cwd=tmp_path, cache=cache
    )
    assert more.returncode == 0, more.stderr
    again = read_json(run.memory)["measured"]
    paged = (measured["optimizer_off_card"], again["optimizer_off_card"])
    assert paged[0] == pytest.approx(paged[1]), "state that was paged is no longer paged after a resume"
    assert again["classes"]["optimizer_on_card"] == pytest.approx(measured["classes"]["optimizer_on_card"])
    assert read_json(run.run)["resumed_from_step"] == 12


def test_segments_are_expandable_although_the_user_set_nothing(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from voxtrain.settings import compose\n"
        "settings = compose(['+recipe=full_sft_24gb', 'data.manifest=none'])\n"
        "os.environ |= settings.memory.environment()\n"
        "import torch\n"
        "torch.ones(1 << 20, device='cuda')\n"
        "assert all(segment['is_expandable'] for segment in torch.cuda.memory_snapshot())\n"
    )
    environment = {key: value for key, value in os.environ.items() if "ALLOC_CONF" not in key}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
