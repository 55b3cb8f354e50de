"""What the tests have ranks do: functions that a new process finds by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from model_batches import OneRow, StepBatch, step_batch
from model_steps import ADAMW, CPU, LORA, SCHEDULE, fit, module, rows_of_step

from voxtrain.data.share import cut_shares
from voxtrain.fault import Fault, InputError, RunFailed
from voxtrain.model.module import VoxModule
from voxtrain.model.tuning import FullTuning
from voxtrain.model.upstream import load_model
from voxtrain.ranks.agreement import digest
from voxtrain.ranks.group import Ranks

STEPS = 5


@dataclass(frozen=True)
class Learnt:
    """What one run of a stack came to, as rank 0 tells it."""

    losses: list[tuple[float, float, float]]  # total, stop, grad_norm of each step
    rows: list[list[str]]  # of each step, in the order in which they are told
    skipped: list[int]
    weights: dict[str, torch.Tensor]
    digests: list[str]  # of every rank


def narrow(folder: Path) -> VoxModule:
    """The 16 GB stack: bf16 weights, rounded at random, autocast, recomputed; its state in fp32 for a tiny model."""
    return VoxModule(
        load_model(folder, None, CPU, torch.bfloat16, seed=3),
        FullTuning(),
        ADAMW,
        SCHEDULE,
        weights_diff=1.0,
        weights_stop=0.5,
        loss_normalisation="per_row",
        max_grad_norm=1.0,
        total_steps=20,
        state="fp32",
        autocast=True,
        activation_checkpointing=True,
        weight_stop_positive=1.0,
        rounding="stochastic",
        gradients="card",
        seed=3,
        kernels="plain",
    )


STACKS = {
    "full": (lambda folder: module(folder, FullTuning()), 5),
    "lora": (lambda folder: module(folder, LORA, loss_normalisation="per_frame"), 5),
    "narrow": (narrow, 4),
    "one_row": (lambda folder: module(folder, FullTuning()), 1),  # nothing is left for rank 1
    "broken": (lambda folder: module(folder, FullTuning()), 2),  # the row of rank 1 in step 2 is not finite
}
"""How a module is made, and how many rows a step has."""


def share_of(step: int, rows: list[OneRow], ranks: Ranks) -> StepBatch:
    """This rank's part of a step, two rows a micro-batch."""
    cuts = cut_shares([len(row.tokens) for row in rows], ranks.size, 2, None)
    micro_batches = [step_batch(step, [[rows[i] for i in part]]).micro_batches[0] for part in cuts[ranks.rank]]
    return replace(step_batch(step, [rows]), micro_batches=tuple(micro_batches))


def learn(folder: Path, stack: str, ranks: Ranks) -> Learnt:
    """A few steps of the tiny model."""
    make, count = STACKS[stack]
    trained = make(folder)
    trained.ranks = ranks
    steps = [share_of(step, rows_of_step(step, count), ranks) for step in range(1, STEPS + 1)]
    if stack == "broken" and ranks.rank == ranks.size - 1:
        steps[1].micro_batches[-1].audio_feats[:] = torch.nan
    collect = fit(trained, steps)
    weights = {name: tensor.clone() for name, tensor in trained.learnt_tensors().items()}
    return Learnt(
        losses=[(r.loss_total, r.loss_stop, r.grad_norm) for r in collect.reports],
        rows=[[row.id for row in r.row_losses] for r in collect.reports],
        skipped=trained.skipped,
        weights=weights,
        digests=ranks.gather(digest(weights)),
    )


def learn_all(folder: Path, ranks: Ranks) -> dict[str, Learnt]:
    """Every stack, one after the other."""
    return {stack: learn(folder, stack, ranks) for stack in STACKS}


def end_badly(how: str, ranks: Ranks) -> str:
    """Rank 1 ends in some way, while rank 0 waits for it; or rank 0 ends, while rank 1 waits."""
    ranks.gather("here")
    if ranks.rank == (0 if how == "leave" else 1):
        match how:
            case "leave":
                return "rank 0 is done"
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise RunFailed("no memory is left")
            case "refuse":
                raise InputError(Fault("state", "it is broken", "restore it"), ledger="rows: 3")
            case "break":
                raise ValueError("nobody foresaw this")
    ranks.gather("and after that")
    time.sleep(600)
    return "never"


def wait_for_a_word(ranks: Ranks) -> list[str]:
    """What the process that started the ranks says, as both hear it; Ctrl-C and SIGTERM must not end a rank."""
    heard: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    ranks.gather("here")
    ranks.listen(heard.append)
    while not heard:
        time.sleep(0.02)
    return ranks.gather(heard[0])
