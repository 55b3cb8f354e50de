"""The disk plan: bytes of a run by arithmetic, equal to what is written, and the fault of a disk that is too small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from voxtrain.checkpoint.snapshot import write_state
from voxtrain.checkpoint.weights import weights_file
from voxtrain.checkpoint.writer import write_checkpoint
from voxtrain.memory.disk import RESERVE_BYTES, DiskPlan, disk_faults, disk_plan, free_bytes
from voxtrain.memory.stack import MemoryStack
from voxtrain.memory.widths import widths
from voxtrain.model.tensors import learnt_shapes
from voxtrain.run_folder import RunFolder

CONF = Path(__file__).parents[1] / "conf"
ARCHITECTURE: dict[str, Any] = yaml.safe_load((CONF / "model" / "voxcpm2.yaml").read_text())["architecture"]
LORA = {
    "r": 32, "enable_lm": True, "enable_dit": True, "enable_proj": False,
    "target_modules_lm": ["q_proj", "v_proj", "k_proj", "o_proj"],
    "target_modules_dit": ["q_proj", "v_proj", "k_proj", "o_proj"], "target_proj_modules": [],
    "locenc_targets": [], "stop_head": False,
}  # fmt: skip


def stack(name: str, **changes: Any) -> MemoryStack:
    values = yaml.safe_load((CONF / "memory" / f"{name}.yaml").read_text())
    values.pop("_target_")
    return MemoryStack.model_validate({**values, **changes})


def planned(**changes: Any) -> DiskPlan:
    given: dict[str, Any] = {
        "checkpoints": 10, "weights": "bf16", "stack": stack("24gb"), "carried_bytes": 0, "states_standing": 0,
    }  # fmt: skip
    lora = changes.pop("lora", None)
    return disk_plan(ARCHITECTURE, lora, **{**given, **changes})


INDEX = 71_536
"""Bytes of names, shapes and places at the head of the released model's weights in bf16."""


def test_ten_checkpoints_of_full_sft() -> None:
    need = planned()
    assert need.checkpoint_bytes == 2 * 2_290_004_544 + INDEX
    assert need.added_at_rest_bytes == 10 * need.checkpoint_bytes + need.state_bytes
    assert need.added_at_peak_bytes == need.added_at_rest_bytes + need.state_bytes
    assert need.added_at_rest_bytes / 2**30 < 58


@pytest.mark.parametrize(
    ("changes", "checkpoint_bytes"),
    [
        ({"weights": "fp32"}, 4 * 2_290_004_544),
        ({"carried_bytes": 7}, 2 * 2_290_004_544 + 7),
        ({"lora": LORA}, 4 * 565_248 * 32),
        ({"lora": LORA, "carried_bytes": 7}, 4 * 565_248 * 32),
    ],
)
def test_bytes_of_one_checkpoint(changes: dict[str, Any], checkpoint_bytes: int) -> None:
    index = planned(**changes).checkpoint_bytes - checkpoint_bytes
    assert 100 * 384 < index < 160 * 577


def test_a_run_that_goes_on_has_a_state_already() -> None:
    need = planned(checkpoints=0, states_standing=1)
    assert need.added_at_rest_bytes == 0
    assert need.added_at_peak_bytes == need.state_bytes


def test_a_disk_that_is_too_small_is_told_to_the_byte(tmp_path: Path) -> None:
    need = planned()
    enough = need.added_at_peak_bytes + RESERVE_BYTES
    assert disk_faults(need, tmp_path, lambda _: enough) == []
    [fault] = disk_faults(need, tmp_path, lambda _: enough - 1)
    assert str(tmp_path) in fault.where
    assert "10 numbered checkpoints of 4.27 GiB" in fault.what
    assert "checkpoint.every" in fault.remedy


def test_the_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b" / "c") == pytest.approx(free_bytes(tmp_path), rel=0.01)


@pytest.mark.parametrize("name", ["12gb", "16gb", "24gb", "80gb"])
def test_the_state_is_what_the_stack_holds(name: str) -> None:
    """Weights as they learn and the moments, to a thousandth: beside them are indices and bitsandbytes' formats."""
    held = widths(stack(name), adapters=False)
    assert planned(stack=stack(name)).state_bytes == pytest.approx(2_290_004_544 * (held.learnt + held.state), rel=1e-3)


BF16 = "memory.weights=bf16"
SLOW = (
    ("8bit", ("memory.state=8bit",)),
    ("stochastic", (BF16, "memory.rounding=stochastic", "memory.state=8bit")),
    ("kahan", (BF16, "memory.rounding=kahan", "memory.state=8bit")),
    ("kahan_fp32", (BF16, "memory.rounding=kahan")),
    ("host", ("memory.state=host",)),
    ("host_8bit", (BF16, "memory.state=host_8bit")),
    ("bf16_numbered", ("checkpoint.weights=bf16", "memory.state=8bit")),
    ("lora_8bit", ("tuning=lora", "memory.state=8bit")),
    ("lora_projections", ("tuning=lora", "tuning.projections=true", "tuning.locenc=true")),
)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="full"),
        pytest.param(("tuning=lora",), id="lora"),
        pytest.param(("tuning=lora", "tuning.locenc=true", "tuning.stop_head=true"), id="beyond_upstream"),
        *(pytest.param(more, id=name, marks=pytest.mark.slow) for name, more in SLOW),
    ],
)
def test_the_arithmetic_is_what_the_tiny_model_writes(
    tiny: Any, tiny_folder: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """To the byte, tensors and the index of each file; the JSON beside them is small."""
    from voxtrain.model import upstream
    from voxtrain.model.module import VoxModule
    from voxtrain.settings import compose

    settings = compose(["+recipe=demo", "checkpoint.weights=fp32", *(one for one in more)])
    tuning, memory, config = settings.tuning, settings.memory, settings.tuning.adapter_config()
    dtype = torch.bfloat16 if memory.weights == "bf16" and config is None else torch.float32
    model = upstream.load_model(tiny_folder, tuning if config else None, torch.device("cpu"), dtype)
    module = VoxModule(
        model, tuning, settings.optimizer, settings.schedule, weights_diff=1.0, weights_stop=1.0,
        weight_stop_positive=1.0,
        loss_normalisation="per_row", max_grad_norm=1.0, total_steps=1, state=memory.state, autocast=False,
        activation_checkpointing=False, rounding=memory.rounding, gradients="card", seed=0, kernels="plain",
    )  # fmt: skip
    optimizer = module.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    names = {name: tuple(tensor.shape) for name, tensor in module.learnt_tensors().items()}
    assert learnt_shapes(tiny.architecture, config) == names
    need = disk_plan(
        tiny.architecture, config, checkpoints=1, weights=settings.checkpoint.weights, stack=memory, carried_bytes=0,
        states_standing=0,
    )  # fmt: skip
    run = RunFolder(tmp_path / "run")
    write_checkpoint(run, 0, module.learnt_tensors(), tiny_folder, config, settings.checkpoint.weights, {})
    write_state(run, module, optimizer, "f")
    assert weights_file(run.checkpoint(0)).stat().st_size == need.checkpoint_bytes
    assert sum(path.stat().st_size for path in run.state(0).glob("*.safetensors")) == need.state_bytes
    assert sum(path.stat().st_size for path in run.root.rglob("*.json")) < RESERVE_BYTES / 16


@pytest.mark.slow
def test_a_run_with_ten_checkpoints_takes_what_was_planned(tmp_path: Path, cache: Path) -> None:
    """The plan of the published run, 9000 steps in miniature: at rest, and at its peak while the last state is made."""
    from voxtrain.run_plan import plan_disk
    from voxtrain.settings import load

    environment = {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    asked = ("train.max_steps=9", "checkpoint.every=1", "checkpoint.state_every=1", "memory.state=8bit")
    command = [sys.executable, "-m", "voxtrain", "+recipe=demo", *asked, "validation.when=never", "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "run")
    need = plan_disk(load(run.root))
    assert len(run.checkpoint_steps()) == need.checkpoints == 10
    weights = [weights_file(run.checkpoint(step)).stat().st_size for step in run.checkpoint_steps()]
    states = [path.stat().st_size for path in run.states.rglob("*.safetensors")]
    assert sum(weights) + sum(states) == need.added_at_rest_bytes
    assert need.added_at_peak_bytes - need.added_at_rest_bytes == sum(states)
    seen = {(path.stat().st_ino, path.stat().st_size) for path in run.checkpoints.rglob("*") if path.is_file()}
    base = {path.stat().st_ino for path in cache.rglob("*") if path.is_file()}
    unshared = sum(size for inode, size in seen if inode not in base)
    assert unshared - sum(weights) < RESERVE_BYTES / 16, "what does not change is not shared"
