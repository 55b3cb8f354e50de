"""The trace on fake tensors against bytes really allocated: three sizes, every memory stack, full and LoRA."""

from __future__ import annotations

import gc
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_material import STACKS, architecture, stack
from model_steps import LORA
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from voxtrain.memory.live import LiveBytes, _workspace
from voxtrain.memory.longest import Length, Longest
from voxtrain.memory.plan import GIB, Work, predict
from voxtrain.memory.stack import MemoryStack
from voxtrain.memory.trace import DTYPES, Trace, batch_of, trace_step
from voxtrain.memory.watch import optimizer_gib
from voxtrain.model.loss import position_losses
from voxtrain.model.upstream import VoxCPM2Model, absent_vae, build_model
from voxtrain.optim.adamw import AdamW

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
CPU = torch.device("cpu")
TWO_ROWS = Longest((Length(60, 40, 36), Length(50, 30, 30)), 4)
ROOT = Path(__file__).parents[1]


def medium() -> dict[str, Any]:
    """Between the two: 9 million parameters."""
    found = architecture("tiny")
    found["lm_config"] |= {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5, "kv_channels": 32}
    found["lm_config"]["rope_scaling"] |= {
        key: [1.0 + n / 8 for n in range(16)] for key in ("long_factor", "short_factor")
    }
    for part in ("encoder_config", "dit_config"):
        found[part] |= {"hidden_dim": 128, "ffn_dim": 512, "num_layers": 3, "kv_channels": 32}
    return found


def large() -> dict[str, Any]:
    """The 88 million parameters of the benchmarks."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "shape_90m.json").read_text())["architecture"]
    return found


SIZES = {"1m": lambda: architecture("tiny"), "9m": medium, "90m": large}


def model_of(arch: dict[str, Any], lora: dict[str, Any] | None, memory: MemoryStack) -> VoxCPM2Model:
    """The model with upstream's own random weights, held as the stack says."""
    model = build_model(arch, None, absent_vae(arch), lora)
    del model.audio_vae
    model.base_lm.kv_cache = model.residual_lm.kv_cache = None
    dtype = DTYPES[memory.weights if lora is None else memory.frozen]
    for name, parameter in model.named_parameters():
        adapter = "lora_" in name
        parameter.data = parameter.data.to(torch.float32 if adapter else dtype)
        parameter.requires_grad_(adapter or lora is None)
    return model


@dataclass(frozen=True)
class Real:
    """Bytes that torch's allocator gave out, beyond what stood before the step."""

    kept: int  # at the end of forward
    forward: int  # most in forward
    backward: int  # most in backward
    gradients: int
    state: int
    weights: int


def allocated(step: profile) -> tuple[int, int]:
    """(left, most) of a profiled piece of code: the profiler hears of every allocation on the CPU."""
    now = most = seen = 0
    for event in sorted(step.profiler.kineto_results.events(), key=lambda one: one.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now, seen = now + event.nbytes(), seen + 1
            most = max(most, now)
    assert seen > 500, "the profiler heard of hardly any allocation"
    return now, most


def autocast(memory: MemoryStack) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if memory.autocast else nullcontext()


def real_step(arch: dict[str, Any], lora: dict[str, Any] | None, longest: Longest, memory: MemoryStack) -> Real:
    model = model_of(arch, lora, memory)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rule = AdamW(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    optimizer = rule.build(learning, memory.state, memory.rounding, 0, "card")
    if memory.gradients == "host":
        _leave(learning)
    elif longest.micro_batches > 1:
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)
    batch = batch_of(arch, longest.lengths, nullcontext())
    gc.collect()
    wanted: dict[str, Any] = {"activities": [ProfilerActivity.CPU], "profile_memory": True}
    with profile(**wanted) as forward:
        with autocast(memory):
            losses = position_losses(model, batch, activation_checkpointing=memory.activation_checkpointing)
        loss = (losses.diff + losses.stop).sum()
        del losses
    with profile(**wanted) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
    gradients = sum(parameter.grad.nbytes for parameter in learning if parameter.grad is not None)
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    here, elsewhere = optimizer_gib([optimizer], CPU)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    (kept, most), (_, more) = allocated(forward), allocated(backward)
    return Real(kept, most, kept + more, gradients, round((here + elsewhere) * GIB), weights)


def _leave(learning: list[torch.nn.Parameter]) -> None:
    """What HostGradients does on a card: there the sums lie elsewhere, and here they would be counted."""
    for parameter in learning:
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))  # type: ignore[no-untyped-call]


def beyond(trace: Trace, held: dict[str, int]) -> int:
    """Bytes of a phase beyond model, batch, and the gradients that stood before."""
    stood = sum(trace.loaded.values()) + sum(trace.forward.get(name, 0) for name in ("batch", "gradients"))
    return sum(held.values()) - stood


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("size", list(SIZES))
def test_what_is_predicted_is_what_is_allocated(size: str, name: str, tuning: str) -> None:
    """Seen: 0.1 to 0.4 %, of rounding to blocks; the issue's limit is 5 %."""
    memory, arch = stack(name), SIZES[size]()
    memory = memory.model_copy(update={"frozen": "fp32"}) if name == "cpu" else memory
    lora = LORA.adapter_config() if tuning == "lora" else None
    real = real_step(arch, lora, TWO_ROWS, memory)
    trace = trace_step(arch, lora, TWO_ROWS, memory, cuda=False)
    in_flight = trace.backward.get("gradients", 0) if memory.gradients == "host" else 0
    assert beyond(trace, trace.kept) == pytest.approx(real.kept, rel=0.01)
    assert beyond(trace, trace.forward) == pytest.approx(real.forward, rel=0.01)
    assert beyond(trace, trace.backward) - in_flight == pytest.approx(real.backward, rel=0.02)
    plan = predict(Work(arch, lora, TWO_ROWS), memory, 0, None)
    step = plan.phases["first_optimizer_step"]
    assert step["weights"] * GIB == pytest.approx(real.weights, rel=0.02)  # to blocks of 512 bytes
    assert step["gradients"] * GIB == pytest.approx(real.gradients, rel=0.02)
    assert plan.optimizer_off_card * GIB + step["optimizer_on_card"] * GIB == pytest.approx(real.state, rel=0.01)


@pytest.mark.slow
def test_what_forward_keeps_is_what_autograd_saves() -> None:
    """A second witness, of autograd itself: the storages that were saved for backward, and nothing else, are kept."""
    memory, arch = stack("80gb"), medium()
    model = model_of(arch, None, memory)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = batch_of(arch, TWO_ROWS.lengths, nullcontext())
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast(memory):
        losses = position_losses(model, batch, activation_checkpointing=False)
    trace = trace_step(arch, None, TWO_ROWS, memory, cuda=False)
    assert len(saved) > 300
    assert beyond(trace, trace.kept) == pytest.approx(sum(saved.values()), rel=0.05)
    assert losses.diff.requires_grad


@pytest.mark.slow
def test_every_transformer_has_its_share() -> None:
    trace = trace_step(architecture("tiny"), None, TWO_ROWS, stack("cpu"), cuda=False)
    for name in ("base_lm", "residual_lm", "feat_encoder", "feat_decoder", "outside"):
        assert trace.kept[name] > 0
    assert trace.after["gradients"] == trace.loaded["weights"]
    assert all(trace.after.get(name, 0) == 0 for name in ("base_lm", "feat_decoder", "outside"))


def test_cudas_attention_has_a_workspace() -> None:
    """By hand, of flash_api.cpp: 2 x 16 heads x 128 tokens x (64 + 1) sums of 4 bytes, and k and v for all 16 heads."""
    q, k = torch.empty(2, 16, 11, 64, dtype=torch.bfloat16), torch.empty(2, 2, 11, 64, dtype=torch.bfloat16)
    assert _workspace((q, q, k, k)) == 2 * 16 * 128 * 65 * 4 + 2 * 2 * 16 * 11 * 64 * 2
    assert _workspace((q.float(), q.float(), k.float(), k.float())) == 0, "flash attention takes no fp32"


def test_live_bytes_follow_real_tensors_too() -> None:
    live = LiveBytes()
    with live:
        held = torch.ones(1000) * 2
        live.label = "more"
        del held
        kept = torch.zeros(300)
    assert live.now["more"] == 1536 == live.total
    assert sum(live.peak.values()) == 2 * 4096
    assert len(kept) == 300
