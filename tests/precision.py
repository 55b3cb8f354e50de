"""The memory stacks on the tiny model: modules as training builds them, and a task on which stacks can be compared.

The task is like fine-tuning: a model that has learnt one domain learns another. A patch of audio follows from a word of
the text by a table, which differs between the domains, plus noise; the audio is two positions longer than the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import yaml
from model_batches import DIM, PATCH, MicroBatch, OneRow, micro_batch

from voxtrain.batch import AUDIO_END, AUDIO_START, Draws
from voxtrain.memory.stack import MemoryStack
from voxtrain.model.loss import position_losses
from voxtrain.model.module import VoxModule
from voxtrain.model.tuning import FullTuning, LoraTuning
from voxtrain.model.upstream import VoxCPM2Model, load_model
from voxtrain.optim.adamw import AdamW
from voxtrain.optim.narrow_adamw import NarrowAdamW
from voxtrain.optim.norm import clip, gradient_norm
from voxtrain.optim.schedule import WarmupCosine

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CONF = Path(__file__).parents[1] / "conf"
STACKS: dict[str, tuple[str, dict[str, str]]] = {
    "fp32": ("80gb", {}),
    "8bit": ("80gb", {"state": "8bit"}),
    "stochastic": ("16gb", {"state": "fp32"}),
    "stochastic_8bit": ("16gb", {}),
    "kahan": ("16gb", {"rounding": "kahan", "state": "fp32"}),
    "kahan_8bit": ("16gb", {"rounding": "kahan"}),
    "host": ("16gb", {"rounding": "nearest", "state": "host"}),
    "host_8bit": ("16gb", {"rounding": "nearest", "state": "host_8bit"}),
    "12gb": ("12gb", {}),
}
"""Names of the stacks that are compared: an option of conf/memory, and what is changed of it."""
WORDS = 16


def stack(name: str) -> MemoryStack:
    option, changes = STACKS[name]
    values = yaml.safe_load((CONF / "memory" / f"{option}.yaml").read_text())
    values.pop("_target_")
    return MemoryStack.model_validate({**values, **changes})


def loaded(folder: Path, tuning: FullTuning | LoraTuning, held: MemoryStack) -> VoxCPM2Model:
    """The model as train.py loads it for the stack."""
    lora = tuning if isinstance(tuning, LoraTuning) else None
    return load_model(folder, lora, CPU, DTYPES[held.frozen if lora else held.weights], seed=3)


def module(folder: Path, tuning: FullTuning | LoraTuning, held: MemoryStack, lr: float = 1e-4) -> VoxModule:
    return VoxModule(
        loaded(folder, tuning, held),
        tuning,
        AdamW(lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
        WarmupCosine(warmup_steps=0, final_share=1.0),
        weights_diff=1.0,
        weights_stop=1.0,
        weight_stop_positive=1.0,
        loss_normalisation="per_row",
        max_grad_norm=1.0,
        total_steps=100,
        state=held.state,
        autocast=held.autocast,
        activation_checkpointing=held.activation_checkpointing,
        rounding=held.rounding,
        gradients=held.gradients,
        seed=5,
        kernels="plain",
    )


def _table(domain: int) -> torch.Tensor:
    table = torch.randn(WORDS, PATCH, DIM, generator=torch.Generator().manual_seed(7000))
    turn = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(7001)) / DIM**0.5
    return 0.6 * table + 0.8 * (table @ turn) if domain else table


def row_of(domain: int, place: int) -> OneRow:
    """A row of a domain, as a function of its place."""
    generator = torch.Generator().manual_seed(place)
    count = int(torch.randint(3, 7, (1,), generator=generator))
    words, audio = torch.randint(0, WORDS, (count,), generator=generator), count + 2
    tokens = torch.tensor([*(105 + words).tolist(), AUDIO_START, *[0] * audio, AUDIO_END])
    heard = torch.zeros(len(tokens), dtype=torch.bool)
    heard[-1 - audio : -1] = True
    feats = torch.zeros(len(tokens), PATCH, DIM)
    spoken = words[(torch.arange(audio) * count) // audio]
    feats[heard] = _table(domain)[spoken] + 0.3 * torch.randn(audio, PATCH, DIM, generator=generator)
    t = torch.sigmoid(torch.randn(audio, generator=generator) - 0.4)
    noise = torch.randn(audio, PATCH, DIM, generator=generator)
    return OneRow(
        tokens, feats, heard, heard.clone(), Draws(t, noise, torch.rand(audio, generator=generator) > 0.1), place
    )


def batches(domain: int, seed: int, steps: int, rows: int) -> Iterator[MicroBatch]:
    """One micro-batch for each step, of rows that are not repeated."""
    for step in range(steps):
        first = 1_000_000 * (seed + 1) + step * rows
        yield micro_batch([row_of(domain, first + number) for number in range(rows)])


def validation_loss(model: VoxCPM2Model, held: MemoryStack) -> float:
    """The loss of 96 rows of the second domain, which no training sees, on fixed draws."""
    total, positions = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=held.autocast, cache_enabled=False):
        for number in range(2):
            rows = [row_of(1, 900_000_000 + 48 * number + n) for n in range(48)]
            losses = position_losses(model, micro_batch(rows), activation_checkpointing=False)
            total += float((losses.diff.double() + losses.stop.double()).sum())
            positions += len(losses.diff)
    return total / positions


def learn(
    model: VoxCPM2Model, optimizer: torch.optim.Optimizer, held: MemoryStack, data: Iterator[MicroBatch], lr: float
) -> None:
    """Train on every batch, with the recipe's clipping, and a learning rate that goes down to zero."""
    steps = list(data)
    for done, batch in enumerate(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=held.autocast, cache_enabled=False):
            losses = position_losses(model, batch, activation_checkpointing=False)
        (losses.diff + losses.stop).mean().backward()
        of = optimizer.gradient_of if isinstance(optimizer, NarrowAdamW) else attrgetter("grad")
        gradients = [gradient for gradient in map(of, model.parameters()) if gradient is not None]
        clip(gradients, 1.0, gradient_norm(gradients))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (done + 1) / 10) * 0.5 * (1 + math.cos(math.pi * done / len(steps)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def optimizer_of(model: VoxCPM2Model, held: MemoryStack, lr: float, seed: int) -> torch.optim.Optimizer:
    rule = AdamW(lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return rule.build(learning, held.state, held.rounding, seed, held.gradients)


def plain_bf16(model: VoxCPM2Model, lr: float) -> torch.optim.Optimizer:
    """What the settings refuse."""
    options: dict[str, Any] = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    return torch.optim.AdamW(model.parameters(), **options)
