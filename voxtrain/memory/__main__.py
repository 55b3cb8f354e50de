"""The door of the memory room: the memory and disk plan of a run, which starts nothing.

    python -m voxtrain.memory +recipe=full_sft_24gb [--card 4090] [--json]
    python -m voxtrain.memory RUN [memory=16gb ...]      with the run's own training rows

Exit code 0 whether the run fits or not. Without data.manifest every row is assumed to last `clean.max_seconds`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxtrain.door import run_door, run_settings, split_arguments
from voxtrain.fault import DONE, Fault, InputError
from voxtrain.manifest.prepare import read_split
from voxtrain.manifest.row import Row
from voxtrain.manifest.usable import rows_of
from voxtrain.memory.card import size_gib
from voxtrain.memory.disk import DiskPlan, free_bytes, told_size
from voxtrain.memory.plan import CLASSES, GIB, PARTS, MemoryPlan, predict
from voxtrain.memory.remedies import Remedy, remedies
from voxtrain.model.tiny import TinyModel
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.run_plan import plan_disk, plan_work
from voxtrain.settings import Settings, compose

USES = (
    *("model", "tuning", "memory", "checkpoint", "clean.max_seconds"),
    *("data.manifest", "data.columns", "data.group_by"),
    *("train.max_steps", "train.max_rows", "train.batch_size", "train.grad_accum"),
)
"""The settings that the plan of a run makes use of."""


SHORT = {
    "gradients": "grads", "optimizer_on_card": "state", "activations": "activ.", "autocast_copies": "copies",
    "context": "CUDA",
}  # fmt: skip
"""Names of classes in the table."""


def main(arguments: list[str]) -> int:
    """Print the plan of the run that the arguments describe; returns the exit code. Raises InputError."""
    parser = argparse.ArgumentParser(prog="python -m voxtrain.memory", description="The memory and disk plan of a run.")
    parser.add_argument("settings", nargs="*", metavar="+recipe=NAME [KEY=VALUE ...] or RUN")
    parser.add_argument("--card", help="24gb, a card's name such as 4090, or MiB (without: memory.card)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_intermixed_args(arguments)
    paths, overrides = split_arguments(given.settings)
    settings, rows = _run(paths, overrides) if paths else _described(overrides)
    card_gib = settings.memory.card_gib() if given.card is None else _card(given.card)
    work, disk = plan_work(settings, rows, _folder(settings) if rows else None), plan_disk(settings)
    plan = predict(work, settings.memory, disk.added_at_peak_bytes, card_gib)
    found = [] if card_gib is None else remedies(work, settings.memory, plan, count=2)
    if given.json:
        print(json.dumps(_record(plan, disk, found), indent=2, allow_nan=False))
    else:
        _tell(plan, disk, found)
    return DONE


def _run(paths: Sequence[Path], overrides: list[str]) -> tuple[Settings, list[Row]]:
    """A run's settings and its own training rows; where it is to be planned with other data, those."""
    if len(paths) > 1:
        raise InputError(Fault("python -m voxtrain.memory", f"{len(paths)} run folders were named", "name one"))
    settings = run_settings(paths[0], overrides, USES)
    prepared = DataFolder(RunFolder(paths[0]).data)
    if prepared.rows("train").is_file() and not any(o.startswith(("data=", "data.")) for o in overrides):
        return settings, read_split(prepared, "train")
    return settings, _rows(settings)


def _described(overrides: list[str]) -> tuple[Settings, list[Row]]:
    """The settings of a run to come; a plan can do without a manifest, and then any name stands for it."""
    if any(override.startswith("data.manifest=") for override in overrides):
        settings = compose(overrides)
        return settings, _rows(settings)
    return compose(["data.manifest=none", *overrides]), []


def _rows(settings: Settings) -> list[Row]:
    data = settings.data
    return [] if data.manifest is None else rows_of(data.manifest, data.columns, data.group_by)


def _folder(settings: Settings) -> Path | None:
    """The model's folder where it lies here: a plan fetches and builds nothing."""
    model = settings.model
    if isinstance(model, TinyModel) or model.would_fetch():
        return None
    try:
        return model.folder()
    except InputError:
        return None


def _card(name: str) -> float:
    try:
        return size_gib(name)
    except ValueError as error:
        raise InputError(Fault(f"--card {name}", str(error), "give a card that voxtrain knows")) from None


def _record(plan: MemoryPlan, disk: DiskPlan, found: Sequence[Remedy]) -> dict[str, Any]:
    return {
        **plan.to_json(),
        "remedies": [
            {"setting": r.setting, "saves_gib": r.saves_gib, "peak_gib": r.peak_gib, "fits": r.fits} for r in found
        ],
        "disk": {
            "checkpoints": disk.checkpoints,
            "checkpoint_gib": disk.checkpoint_bytes / GIB,
            "state_gib": disk.state_bytes / GIB,
            "at_rest_gib": disk.added_at_rest_bytes / GIB,
            "free_gib": free_bytes(Path.cwd()) / GIB,
        },
    }


def _tell(plan: MemoryPlan, disk: DiskPlan, found: Sequence[Remedy]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "GiB in each phase (predicted)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 2), pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for name in CLASSES:
        table.add_column(SHORT.get(name, name), justify="right")
    table.add_column("sum", justify="right")
    for name, phase in plan.phases.items():
        held = [*phase.values(), sum(phase.values())]
        style = "bold" if name == plan.phase else None
        table.add_row(name.replace("_", " "), *(f"{gib:.2f}" for gib in held), style=style)
    console = Console(highlight=False)
    console.print(table)
    parts = plan.parts["backward"]
    told = ", ".join(f"{name} {parts[name]:.2f}" for name in PARTS["activations"])
    console.print(f"Activations in backward: {told}.", markup=False, soft_wrap=True)
    for line in [*_verdict(plan), *_savings(plan, found), *_disk_lines(disk)]:
        console.print(line, markup=False, soft_wrap=True)


def _verdict(plan: MemoryPlan) -> list[str]:
    longest, phase = plan.longest, plan.phase.replace("_", " ")
    head = (
        f"Longest micro-batch: {longest.rows} x {longest.lengths[0].positions} positions, "
        f"{longest.micro_batches} in a step. Peak {plan.peak_gib:.2f} GiB, in {phase}"
    )
    if plan.optimizer_off_card > 0:
        head += f" ({plan.optimizer_off_card:.2f} GiB of optimizer state is off the card then)"
    if plan.host_gib >= 1:
        head += f"; {plan.host_gib:.1f} GiB of host memory beside it"
    if plan.card_gib is None:
        return [f"{head}.", "No card to fit: this plan is for the CPU."]
    limits = f"a card of {plan.card_gib:.2f} GiB with {plan.reserve_gib:.2f} in reserve"
    if plan.fits:
        return [f"{head}.", f"Fits {limits}: {plan.spare_gib():.2f} GiB to spare."]
    return [f"{head}.", f"Does not fit {limits}: {-plan.spare_gib():.2f} GiB too much."]


def _savings(plan: MemoryPlan, found: Sequence[Remedy]) -> list[str]:
    head = "To save memory: " if plan.fits else "To make it fit: "
    return [head + "; ".join(map(str, found))] if found and plan.card_gib is not None else []


def _disk_lines(disk: DiskPlan) -> list[str]:
    return [
        f"Disk: {disk.checkpoints} numbered checkpoints of {told_size(disk.checkpoint_bytes)} and a state of "
        f"{told_size(disk.state_bytes)}: {told_size(disk.added_at_rest_bytes)} at rest, "
        f"{told_size(disk.added_at_peak_bytes)} while a state replaces another; "
        f"{told_size(free_bytes(Path.cwd()))} are free here."
    ]


if __name__ == "__main__":
    run_door(main)
