"""Weights & Biases, fed from metrics.csv and saves.csv: what is in the files is sent, so that both say the same.

Sending is reading the file on from where the last reading ended. So a resumed run refills the page from the first row,
and a step is sent at least once, under `train/step`; held-out losses follow under `val/step` when they are known.
Charts are drawn over rows seen (`train/rows`, `val/rows`), so that runs of a sweep compare at equal rows, however many
of them make a step; `train/step` and `val/step` can be chosen as the axis of any chart.
Online, every sitting of a run goes on with one page. Offline, wandb cannot go on (`resume` starts a second folder at
step 0), so each sitting and each validation writes a folder with an id of its own that holds everything so far: sync
the newest.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

from voxtrain.durable import read_json, read_log_rows
from voxtrain.fault import DONE, FAILED, RunFailed
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from wandb import Run

    from voxtrain.metrics.wandb_page import WandbPage

SECONDS_TO_START = 60.0


class WandbLog(pl.Callback):
    """Sends new rows of metrics.csv and saves.csv after each step. Must stand after `StepLog`."""

    def __init__(self, settings: WandbPage, run: RunFolder, plain_config: Mapping[str, Any], name: str) -> None:
        super().__init__()
        self._settings, self._run_folder, self._config, self._name = settings, run, plain_config, name
        self._run: Run | None = None
        self._steps, self._saves = Tail(run.metrics), Tail(run.saves)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the page, and refill it with what an earlier sitting logged. Raises RunFailed if it does not open."""
        self._run = open_page(self._settings, self._run_folder, self._config, self._name)
        self._send()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Send the row of this step."""
        self._send()

    def _send(self) -> None:
        if self._run is None:
            return
        try:
            for row in self._steps.new_rows():
                self._run.log(figures(row, "train"))
            for row in self._saves.new_rows():
                self._run.log(figures(_under("save", row), "save"))
        except Exception as error:
            self._give_up(error)

    def _send_receipt(self) -> None:
        try:
            receipt = memory_figures(self._run_folder)
            if receipt and self._run is not None:
                self._run.log(receipt)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Hours of training must not die of a page that nobody needs: metrics.csv has it all."""
        print(f"Weights & Biases stopped listening ({error}); metrics.csv goes on.", file=sys.stderr)
        self.close(FAILED)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the page as failed: Lightning does not call `teardown` after an exception."""
        self.close(FAILED)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Send the row of the last save, which was under way at the last step, and the receipt; close the page."""
        self._send()
        self._send_receipt()
        self.close(DONE)

    def close(self, exit_code: int) -> None:
        """Close the page; a second call does nothing."""
        page, self._run = self._run, None
        if page is not None:
            page.finish(exit_code=exit_code)


class Tail:
    """Reads an append-only table row by row, each once."""

    def __init__(self, path: Path) -> None:
        self._path, self._place = path, 0
        self._columns: list[str] = []

    def new_rows(self) -> list[dict[str, str]]:
        """The complete rows that were added since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        rows = list(csv.reader(whole.decode().splitlines()))
        if rows and not self._columns:
            self._columns, *rows = rows
        return [dict(zip(self._columns, row, strict=True)) for row in rows]


def figures(row: Mapping[str, str], part: str) -> dict[str, float]:
    """The numbers of a row, `step` as `train/step` or `val/step`; empty cells are left out."""
    named = {(f"{part}/{key}" if key == "step" else key): cell for key, cell in row.items() if cell != ""}
    return {key: float(cell) for key, cell in named.items()}


def memory_figures(run: RunFolder) -> dict[str, float]:
    """The receipt of memory.json as figures, GiB: `memory/first_forward/measured`; empty where there is none."""
    if not run.memory.is_file():
        return {}
    receipt = read_json(run.memory)
    told = {"peak": {side: receipt[side].get("peak_gib") for side in ("predicted", "measured")}}
    for name, value in receipt["measured"].get("classes", {}).items():
        told[name] = {"predicted": receipt["predicted"]["classes"].get(name), "measured": value}
    told |= receipt.get("phases", {})
    return {
        f"memory/{name}/{side}": float(value)
        for name, sides in told.items()
        for side, value in sides.items()
        if value is not None
    }


def log_validation(settings: WandbPage, run: RunFolder, plain_config: Mapping[str, Any], name: str) -> None:
    """Send evaluation/checkpoints.csv under `val/`; offline, with all training steps in the same folder."""
    judged = [figures(_under("val", row), "val") for row in read_log_rows(run.evaluated_checkpoints)]
    if not judged:
        return
    trained = [figures(row, "train") for row in Tail(run.metrics).new_rows()]
    rows_seen = {0.0: 0.0} | {row["train/step"]: row["train/rows"] for row in trained if "train/rows" in row}
    for losses in judged:
        if losses["val/step"] in rows_seen:
            losses["val/rows"] = rows_seen[losses["val/step"]]
    page = open_page(settings, run, plain_config, name)
    try:
        if settings.mode == "offline":
            for row in (*trained, *(figures(_under("save", save), "save") for save in Tail(run.saves).new_rows())):
                page.log(row)
        for losses in judged:
            page.log(losses)
    finally:
        page.finish(exit_code=DONE)


def _under(part: str, row: Mapping[str, str]) -> dict[str, str]:
    return {("step" if key == "step" else f"{part}/{key}"): cell for key, cell in row.items() if _is_number(cell)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def open_page(settings: WandbPage, run: RunFolder, plain_config: Mapping[str, Any], name: str) -> Run:
    """Start wandb without a word on the terminal. Raises RunFailed, with the remedy, if it does not start."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    page_id = known_id(run) if settings.mode == "online" else None
    try:
        page = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=name,
            id=page_id,
            resume="allow" if page_id else None,
            mode=settings.mode,
            dir=run.root,
            config=dict(plain_config),
            allow_val_change=True,  # a run that goes on may have been given more steps
            settings=wandb.Settings(silent=True, console="off", save_code=False, init_timeout=SECONDS_TO_START),
        )
    except wandb.errors.Error as error:
        raise RunFailed(
            f"Weights & Biases did not start: {error}\n"
            "Go on with resume=RUN and logger.mode=offline or logger=csv; metrics.csv has every step in any case."
        ) from error
    for part in ("train", "val"):
        page.define_metric(f"{part}/rows")
        page.define_metric(f"{part}/*", step_metric=f"{part}/rows")
    page.define_metric("save/step")
    page.define_metric("save/*", step_metric="save/step")
    return page


def known_id(run: RunFolder) -> str | None:
    """The id under which an earlier sitting of this run went online: wandb names its folders run-<time>-<id>."""
    folders = sorted((run.root / "wandb").glob("run-*_*-*"))
    return folders[-1].name.split("-", 2)[2] if folders else None
