"""A stand-in for training whose saves are measured: the loop, the ways of saving, and what is watched meanwhile."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from voxtrain.checkpoint.callback import SaveCheckpoints
from voxtrain.checkpoint.plan import CheckpointPlan
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.memory.watch import reset_peak, resident_gib, resident_peak_gib
from voxtrain.run_folder import RunFolder

CPU = torch.device("cpu")
WIDTH, EVERY = 1024, 8
"""Of a layer; and a save comes after so many steps."""


class Stack(pl.LightningModule):
    """Square layers one after another, trained by AdamW; as much of VoxModule as a save asks for."""

    def __init__(self, layers: int, rows: int, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
        self.rows, self.steps = rows, steps
        self.steps_done, self.rows_seen = 0, 0
        self.skipped: list[int] = []

    def learnt_tensors(self) -> dict[str, Tensor]:
        """Every tensor, by name."""
        return dict(self.state_dict())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As a run on a CPU has it."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

    def train_dataloader(self) -> DataLoader[int]:
        """The numbers of the steps."""
        return DataLoader(range(1, self.steps + 1), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, step: int) -> None:
        """One update."""
        self.manual_backward(self.layers(torch.randn(self.rows, WIDTH)).square().mean())
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.steps_done, self.rows_seen = step, step * self.rows


class Before(pl.Callback):
    """Stands before whoever saves: times the steps, and notes memory where a save begins and where it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.begins_s: list[float] = []  # of each step
        self.added_gib: list[float] = []  # at each boundary with a save, above what stood there before
        self.peaks_gib: list[float] = []  # of each window from one boundary with a save to the next
        self._standing_gib: float | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's own writer comes after all callbacks: the next step's beginning is a save's end."""
        self.begins_s.append(time.perf_counter())
        if self._standing_gib is not None:
            self.added_gib.append(resident_peak_gib() - self._standing_gib)
            self._standing_gib = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note what stands when a save begins."""
        if (batch_idx + 1) % EVERY == 0:
            self.peaks_gib.append(resident_peak_gib())
            self._standing_gib = resident_gib()
            reset_peak(CPU)


@dataclass(frozen=True, slots=True)
class Way:
    """A way of saving. buffer_gib: of host memory for copies; None: training waits; `writer` is Lightning's or ours."""

    name: str
    writer: str  # none | lightning | ours
    buffer_gib: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one way of saving cost; medians over its saves."""

    step_s: float  # of steps that no save is beside
    cycle_s: float  # of EVERY steps with one save
    added_gib: float  # at the boundary, above what stood there
    peak_gib: float  # of a whole cycle
    written_gib: float
    waited_s: float | None  # as saves.csv says; None where it is not ours
    taken_s: float | None


def watch(way: Way, layers: int, rows: int, saves: int, folder: Path) -> Seen:
    """Train with `saves` saves; the first, in which memory is found, does not count."""
    torch.set_num_threads(1)  # on a GPU the CPU is free as well
    module = Stack(layers, rows, EVERY * (saves + 1) + EVERY - 1)
    before = Before()
    run = RunFolder(folder / "run")
    with _savers(way, module, run, folder) as savers:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=[before, *savers],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=way.writer == "lightning",
            default_root_dir=folder,
        )
        trainer.fit(module)
    steps_s = [later - earlier for earlier, later in zip(before.begins_s, before.begins_s[1:], strict=False)]
    cycles_s = [sum(steps_s[place : place + EVERY]) for place in range(2 * EVERY - 1, len(steps_s) - EVERY + 1, EVERY)]
    written_gib = _size_gib(folder)
    waited, taken = _told(run)
    shutil.rmtree(folder)
    quiet = [s for place, s in enumerate(steps_s) if place >= EVERY and place % EVERY == EVERY - 2]
    return Seen(
        step_s=median(quiet),
        cycle_s=median(cycles_s),
        added_gib=median(before.added_gib[1:]),
        peak_gib=median(before.peaks_gib[1:]),
        written_gib=written_gib,
        waited_s=waited,
        taken_s=taken,
    )


@contextmanager
def _savers(way: Way, module: Stack, run: RunFolder, folder: Path) -> Iterator[list[pl.Callback]]:
    folder.mkdir(parents=True)
    if way.writer == "none":
        yield []
    elif way.writer == "lightning":
        yield [pl.callbacks.ModelCheckpoint(dirpath=folder / "lightning", every_n_train_steps=EVERY, save_top_k=1)]
    else:
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        (base / "audiovae.pth").write_bytes(b"")
        plan = CheckpointPlan(
            every=10**9,
            early=(),
            state_every=EVERY,
            weights="bf16",
            background=way.buffer_gib is not None,
            buffer_gib=way.buffer_gib or 0.0,
            low_disk="stop",
            requeue="never",
        )
        with StopRequest() as stop:
            yield [SaveCheckpoints(run, plan, module.steps, base, None, {}, stop, resumes=False, versions={})]


def _told(run: RunFolder) -> tuple[float | None, float | None]:
    if not run.saves.is_file():
        return None, None
    with run.saves.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))[2:-1]  # without step 0, the first, and the last, which nothing is beside
    return median(float(row["stalled_seconds"]) for row in rows), median(float(row["seconds"]) for row in rows)


def _size_gib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**30
