"""Judging: every complete checkpoint that has no records yet, on the same rows under the same draws.

One model stands in memory and no optimizer state; weights are swapped per checkpoint. Records are written after each
checkpoint, so that a judge that was killed goes on where it was, and one that is asked again has nothing to do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtrain.fault import Fault, InputError, RunFailed
from voxtrain.manifest.prepare import read_split
from voxtrain.model.folder import is_complete
from voxtrain.model.size import parameter_counts
from voxtrain.model.tuning import LoraTuning
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.validation.settings import ValidationSettings
from voxtrain.validation.table import comparable_rows, judged_steps, terms, with_step, write_rows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from voxtrain.data.packing import PackedRow
    from voxtrain.manifest.row import Row
    from voxtrain.model.upstream import VoxCPM2Model
    from voxtrain.validation.losses import DrawLoss


ROOM_GIB = 1.5
"""Beside the weights, on a card. Assumed: a context takes about half a GiB."""


@dataclass(frozen=True)
class Sources:
    """What a run was made from, beside its folder."""

    base: Callable[[], Path]  # the base model's folder
    lora: LoraTuning | None
    latent_folder: Path
    keep_tail_s: float | None  # of the silence at the end of each clip, how much stays; null: all


@dataclass
class Judging:
    """What came of one call: all records, and why checkpoints were not judged."""

    table: pa.Table | None
    not_judged: dict[int, str] = field(default_factory=dict)


def judge(run: RunFolder, settings: ValidationSettings, sources: Sources) -> Judging:
    """Judge every complete numbered checkpoint that has no records under these terms; write rows.parquet after each.

    A checkpoint that cannot be loaded is told and left out. Raises InputError when the validation rows, their audio or
    the base model cannot be used, RunFailed when memory does not suffice. The caller holds the lock.
    """
    rows_file = DataFolder(run.data).rows("validation")
    if not rows_file.is_file():
        raise InputError(
            Fault(str(rows_file), "the run has no validation rows", "name a run that has prepared its data")
        )
    wanted = terms(rows_file, settings.draws, settings.dtype)
    judging = Judging(comparable_rows(run, wanted))
    judged = judged_steps(judging.table)
    todo = [step for step in run.checkpoint_steps() if step not in judged]
    if todo:
        _judge_steps(run, settings, sources, todo, wanted, judging)
    return judging


def _judge_steps(
    run: RunFolder,
    settings: ValidationSettings,
    sources: Sources,
    todo: list[int],
    wanted: dict[str, Any],
    judging: Judging,
) -> None:
    from voxtrain.memory.room import wait_for_room
    from voxtrain.model.device import chosen_device

    device = chosen_device("validation.device", settings.device)
    rows = read_split(DataFolder(run.data), "validation")
    names = [(row.id, row.group) for row in rows]
    folder = model_folder(run, todo, sources)
    wait_for_room(device, _needed_gib(folder, settings), "validation.device=cpu does not wait.")
    packed = _packed_rows(rows, folder, sources)
    pairs, seconds = len(rows) * settings.draws, 0.0
    model: VoxCPM2Model | None = None
    for number, step in enumerate(todo, start=1):
        try:
            model = _filled(model, run, step, settings, sources, device)
        except (InputError, OSError, ValueError, KeyError) as error:
            judging.not_judged[step] = _why(error, run.checkpoint(step))
            print(f"step {step} is not judged: {judging.not_judged[step]}", file=sys.stderr, flush=True)
            continue
        began = time.monotonic()
        losses = _losses(model, packed, settings, device, f"judging step {step}")
        judging.table = with_step(judging.table, step, names, losses, wanted)
        write_rows(run, judging.table)
        seconds += time.monotonic() - began
        done = number - len(judging.not_judged)
        left = f", {seconds / done * (len(todo) - number):.0f} s left" if number < len(todo) else ""
        speed = f"{done * pairs / max(seconds, 1e-9):.3g} rows/s"
        print(f"step {step} judged ({number} of {len(todo)}, {speed}{left})", file=sys.stderr, flush=True)


def _needed_gib(folder: Path, settings: ValidationSettings) -> float:
    """GiB on a card: the weights, CUDA's context and what a few rows hold."""
    counts = parameter_counts(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return counts["trainable"] * {"fp32": 4, "bf16": 2}[settings.dtype] / 2**30 + ROOM_GIB


def _packed_rows(rows: list[Row], folder: Path, sources: Sources) -> list[PackedRow]:
    """Latents come from the cache of the training run; what is missing there is encoded now, by `folder`'s AudioVAE."""
    from voxtrain.data.latents import LatentCache
    from voxtrain.data.packing import packed_rows
    from voxtrain.memory.host import give_back_freed_memory
    from voxtrain.model import upstream

    def encode(wave: np.ndarray) -> torch.Tensor:  # the AudioVAE is loaded when the first clip is missing
        latents = upstream.load_encoder(folder)(wave)
        give_back_freed_memory()  # else what clips of all lengths leave behind adds up: 5 GiB after 40 of them
        return latents

    cache = LatentCache(sources.latent_folder, upstream.vae_key(folder), encode, sources.keep_tail_s)
    cache.ensure(rows, progress=True)
    upstream.release_encoder()
    give_back_freed_memory()
    return packed_rows(rows, upstream.load_tokenizer(folder), cache.latents)


def model_folder(run: RunFolder, steps: list[int], sources: Sources) -> Path:
    """A folder with tokenizer and AudioVAE: a full checkpoint, so that the base need not be here; or the base."""
    if sources.lora is None:
        whole = [run.checkpoint(step) for step in steps if is_complete(run.checkpoint(step))]
        if whole:
            return whole[0]
    return sources.base()


def _filled(
    model: VoxCPM2Model | None,
    run: RunFolder,
    step: int,
    settings: ValidationSettings,
    sources: Sources,
    device: torch.device,
) -> VoxCPM2Model:
    import torch

    from voxtrain.checkpoint.weights import check_belongs, first_model, put_weights
    from voxtrain.memory.host import give_back_freed_memory

    check_belongs(run, step)
    folder = run.checkpoint(step)
    if model is None:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.dtype]
        model = first_model(folder, sources.base, sources.lora, device, dtype)
        give_back_freed_memory()
    put_weights(model, folder, sources.lora)
    return model


def _losses(
    model: VoxCPM2Model, rows: list[PackedRow], settings: ValidationSettings, device: torch.device, what: str
) -> list[DrawLoss]:
    import torch

    from voxtrain.validation.losses import losses_on_fixed_draws

    try:
        return losses_on_fixed_draws(model, rows, settings.draws, settings.max_positions, device, what)
    except torch.OutOfMemoryError as error:
        raise RunFailed(
            f"The card has too little memory to judge: {str(error).splitlines()[0]}\n"
            f"Ask again with half of validation.max_positions={settings.max_positions}, or validation.device=cpu"
        ) from None


def _why(error: Exception, folder: Path) -> str:
    if not folder.is_dir():
        return "it is no longer there"
    if isinstance(error, InputError):
        return "; ".join(fault.what for fault in error.faults)
    if isinstance(error, FileNotFoundError):
        return f"{Path(str(error.filename)).name} is no longer there"
    return f"{type(error).__name__}: {error}"
