"""What a training step holds, by the step itself: forward and backward of the real loss on a model of fake tensors.

Nothing is estimated here. What torch allocates is counted operator by operator (live.py) while model/loss.py runs on
model/outline.py, with activation checkpointing, autocast and gradients as the memory stack has them. The full-size
model takes about six seconds and no weights. Fake tensors lie on the CPU, since backward through fake CUDA tensors
needs a CUDA driver; attention, where the two differ, keeps the same tensors on both, and CUDA's workspace is added.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from voxtrain.batch import Draws, MicroBatch
from voxtrain.memory.live import WEIGHTS, LiveBytes
from voxtrain.memory.longest import Length, Longest
from voxtrain.memory.stack import MemoryStack
from voxtrain.model.loss import position_losses
from voxtrain.model.outline import outline
from voxtrain.model.upstream import VoxCPM2Model
from voxtrain.optim.host_gradients import IN_FLIGHT_BYTES

TRANSFORMERS = ("base_lm", "residual_lm", "feat_encoder", "feat_decoder")
OUTSIDE = "outside"
"""What is held for projections, the stop head and the losses."""
GRADIENTS, BATCH, TABLES = "gradients", "batch", "tables"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes by label: `weights`, `gradients`, `autocast_copies`, `batch`, `tables`, each transformer, and `outside`."""

    loaded: dict[str, int]  # the model alone
    forward: dict[str, int]  # when forward holds most
    kept: dict[str, int]  # at the end of forward
    backward: dict[str, int]  # when backward holds most
    after: dict[str, int]  # when the gradients stand
    learnt: tuple[int, ...]  # values of each tensor that learns


@dataclass(frozen=True, slots=True)
class Traced:
    """All that a trace depends on."""

    architecture: str  # JSON
    lora: str  # JSON of LoraTuning.adapter_config, or of null
    lengths: tuple[Length, ...]
    adds_up: bool  # gradients of earlier micro-batches stand while this one goes through
    dtype: str  # of the weights: fp32 | bf16
    autocast: bool
    recompute: bool
    gradients_leave: bool  # for the host, each as soon as it is there
    cuda: bool


def trace_step(
    architecture: Mapping[str, Any],
    lora: Mapping[str, Any] | None,
    longest: Longest,
    stack: MemoryStack,
    *,
    cuda: bool,
) -> Trace:
    """Trace one micro-batch of `longest` under `stack`, the last one of its step; the same once in a process."""
    return _trace(
        Traced(
            architecture=json.dumps(architecture, sort_keys=True),
            lora=json.dumps(lora, sort_keys=True),
            lengths=longest.lengths,
            adds_up=longest.micro_batches > 1,
            dtype=stack.weights if lora is None else stack.frozen,
            autocast=stack.autocast,
            recompute=stack.activation_checkpointing,
            gradients_leave=stack.gradients == "host",
            cuda=cuda,
        )
    )


@lru_cache(maxsize=64)
def _trace(wanted: Traced) -> Trace:
    fake = FakeTensorMode()
    model = outline(json.loads(wanted.architecture), json.loads(wanted.lora), DTYPES[wanted.dtype], fake)
    collecting = gc.isenabled()
    gc.disable()  # a cycle's tensors would be counted until the collector comes by: none is made (tests hold it so)
    try:
        return _run(wanted, model, fake)
    finally:
        if collecting:
            gc.enable()


def _run(wanted: Traced, model: VoxCPM2Model, fake: FakeTensorMode) -> Trace:
    live = LiveBytes(fake, cuda_attention=wanted.cuda)
    live.count(model.parameters(), WEIGHTS)
    live.count(model.buffers(), TABLES)
    loaded = dict(live.now)
    _follow(live, model, leave=wanted.gradients_leave)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if wanted.adds_up and not wanted.gradients_leave:
        with fake:
            for parameter in learning:
                parameter.grad = torch.empty_like(parameter)
        live.count((parameter.grad for parameter in learning if parameter.grad is not None), GRADIENTS)
    batch = batch_of(json.loads(wanted.architecture), wanted.lengths, fake)
    live.count((batch.audio_feats, batch.draws.t, batch.draws.noise), BATCH)
    live.start_phase()
    with fake, live:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if wanted.autocast else nullcontext():
            losses = position_losses(model, batch, activation_checkpointing=wanted.recompute)
        loss = (losses.diff + losses.stop).sum()
        del losses
        forward, kept = live.peak, dict(live.now)
        live.start_phase()
        loss.backward()  # type: ignore[no-untyped-call]
        backward = dict(live.peak)
        del loss
    if wanted.gradients_leave:
        backward[GRADIENTS] = backward.get(GRADIENTS, 0) + IN_FLIGHT_BYTES
    return Trace(loaded, forward, kept, backward, dict(live.now), tuple(parameter.numel() for parameter in learning))


def _follow(live: LiveBytes, model: VoxCPM2Model, *, leave: bool) -> None:
    """Tell `live` which transformer is at work, and which tensors are gradients."""

    def enters(part: str) -> Any:
        def hook(*_: Any) -> None:
            live.label = part

        return hook

    def arrives(part: str) -> Any:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            live.label = part
            live.count([parameter.grad], GRADIENTS)
            if leave:
                parameter.grad = None

        return hook

    live.label = OUTSIDE
    for name, module in model.named_modules():
        part = name.partition(".")[0]
        part = part if part in TRANSFORMERS else OUTSIDE
        if not any(True for _ in module.children()):
            module.register_forward_pre_hook(enters(part))
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(arrives(part))


def batch_of(
    architecture: Mapping[str, Any], lengths: tuple[Length, ...], floats: AbstractContextManager[Any]
) -> MicroBatch:
    """A micro-batch of these lengths. Latents and draws are made within `floats`; shapes depend on masks and tokens."""
    rows, longest = len(lengths), max(one.positions for one in lengths)
    patch, dim = architecture["patch_size"], architecture["feat_dim"]
    real, heard, target = (torch.zeros(rows, longest, dtype=torch.bool) for _ in range(3))
    for row, (positions, audio, loss) in enumerate(lengths):
        real[row, :positions] = True
        target[row, positions - 1 - loss : positions - 1] = True
        heard[row, 1 : 1 + audio - loss] = True  # reference audio stands in front
    heard |= target
    count = int(target.sum())
    with floats:
        feats, noise, t = torch.zeros(rows, longest, patch, dim), torch.zeros(count, patch, dim), torch.zeros(count)
    tokens = torch.zeros(rows, longest, dtype=torch.int64)
    return MicroBatch(
        text_tokens=tokens,
        audio_feats=feats,
        text_mask=real & ~heard,
        audio_mask=heard,
        loss_mask=target,
        stop_labels=tokens.clone(),
        draws=Draws(t, noise, torch.ones(count, dtype=torch.bool)),
        ids=tuple(map(str, range(rows))),
        places=tuple(range(rows)),
    )
