"""The disk plan: bytes of a run by arithmetic, equal to what is written, and the fault of a disk that is too small."""

from __future__ import annotations

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


def test_ten_checkpoints_of_full_sft() -> None:
    need = planned()
    assert need.checkpoint_bytes == 2 * 2_290_004_544
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
    assert planned(**changes).checkpoint_bytes == checkpoint_bytes


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


@pytest.mark.parametrize(
    ("lora", "more"),
    [(False, ()), (True, ()), (True, ("tuning.locenc=true", "tuning.stop_head=true"))],
    ids=["full", "lora", "beyond_upstream"],
)
def test_the_arithmetic_is_what_the_tiny_model_writes(
    tiny: Any, tiny_folder: Path, tmp_path: Path, lora: bool, more: tuple[str, ...]
) -> None:
    """To the overhead of the formats: under 256 bytes of header, and 1.5 KiB of archive, for each tensor."""
    from voxtrain.model import upstream
    from voxtrain.model.module import VoxModule
    from voxtrain.settings import compose

    settings = compose([f"+recipe={'lora_demo' if lora else 'demo'}", *more])
    tuning, config = settings.tuning, settings.tuning.adapter_config()
    model = upstream.load_model(tiny_folder, tuning if lora else None, torch.device("cpu"), torch.float32)
    module = VoxModule(
        model, tuning, settings.optimizer, settings.schedule, weights_diff=1.0, weights_stop=1.0,
        weight_stop_positive=1.0,
        loss_normalisation="per_row", max_grad_norm=1.0, total_steps=1, state="fp32", autocast=False,
        activation_checkpointing=False, rounding="nearest", gradients="card", seed=0, kernels="plain",
    )  # fmt: skip
    optimizer = module.configure_optimizers()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    need = disk_plan(
        tiny.architecture, config, checkpoints=1, weights="fp32", stack=stack("cpu"), carried_bytes=0, states_standing=0
    )
    run = RunFolder(tmp_path / "run")
    write_checkpoint(run, 0, module.learnt_tensors(), tiny_folder, config, "fp32", {"rows_seen": 0})
    write_state(run, module, optimizer, "f")
    name = weights_file(run.checkpoint(0)).name
    assert name == ("adapter.safetensors" if more else "lora_weights.safetensors" if lora else "model.safetensors")
    tensors = len(module.learnt_tensors())
    extra = (run.checkpoint(0) / name).stat().st_size - need.checkpoint_bytes
    assert 0 < extra < 256 * tensors
    extra = sum(path.stat().st_size for path in run.state(0).iterdir()) - need.state_bytes
    assert 0 < extra < (256 + 3 * 512) * tensors
