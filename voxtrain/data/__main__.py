"""The door of the data room: see what the cache of latents holds, and let go what nobody has wanted for long.

    python -m voxtrain.data [data.cache_dir=DIR] [--prune-older-than DAYS [--apply]]

Without --apply it only says what would go. Running trainings keep what they read; what is gone and wanted again is
encoded again.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from voxtrain.composition import compose_config, unused_overrides
from voxtrain.data.latent_store import DAY_S, today
from voxtrain.data.pruning import Shelf, prune, shelves
from voxtrain.door import run_door, split_arguments
from voxtrain.fault import DONE, Fault, InputError


def main(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit code. Raises InputError."""
    parser = argparse.ArgumentParser(prog="python -m voxtrain.data", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="data.cache_dir=DIR")
    parser.add_argument("--prune-older-than", type=int, metavar="DAYS", help="what was wanted since then stays")
    parser.add_argument("--apply", action="store_true", help="delete it (without: only say so)")
    given = parser.parse_intermixed_args(arguments)
    days: int | None = given.prune_older_than
    folder = _folder(given.settings, days, apply=given.apply)
    if days is None:
        _tell(shelves(folder), f"Latents in {folder}")
        return DONE
    before_day = today() - days
    going = shelves(folder, before_day)
    _tell(going, f"Latents in {folder} that nobody has wanted for more than {days} days")
    size = _told_size(sum(shelf.size_bytes for shelf in going))
    if not given.apply:
        print(f"{size} would be set free; --apply deletes them.")
        return DONE
    for shelf in going:
        try:
            prune(shelf, before_day)
        except (OSError, sqlite3.Error) as error:
            what = f"it cannot be pruned: {getattr(error, 'strerror', None) or error}"
            remedy = "what stays is copied: make room, or remove the folder"
            raise InputError(Fault(str(shelf.path), what, remedy)) from None
    print(f"{size} set free.")
    return DONE


def _folder(settings: Sequence[str], days: int | None, *, apply: bool) -> Path:
    """Where latents are kept. Raises InputError with all that is wrong with the arguments."""
    paths, overrides = split_arguments(settings)
    idle = unused_overrides(overrides, ("data.cache_dir",))
    cfg, faults = compose_config([o for o in overrides if o not in {fault.where for fault in idle}])
    faults += idle
    faults += [Fault(str(path), "this is no setting", f"did you mean data.cache_dir={path}?") for path in paths]
    if days is not None and days < 0:
        faults.append(Fault(f"--prune-older-than {days}", "this is no number of days", "give 0 or more"))
    if apply and days is None:
        faults.append(Fault("--apply", "there is nothing to apply", "add --prune-older-than DAYS"))
    if faults:
        raise InputError(*faults)
    return Path(cfg.data.cache_dir).expanduser().absolute() / "latents"


def _tell(found: Sequence[Shelf], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in ("encoder", "clips", "hours", "size", "last wanted"):
        table.add_column(head, justify="left" if head == "encoder" else "right", no_wrap=True)
    table.add_column("")
    for shelf in found:
        day = datetime.fromtimestamp(shelf.last_day * DAY_S, UTC).date().isoformat() if shelf.last_day else ""
        counts = ("", "") if shelf.remark else (f"{shelf.entries:,}", f"{shelf.hours:.2f}")
        table.add_row(shelf.path.name, *counts, _told_size(shelf.size_bytes), day, shelf.remark)
    Console(highlight=False).print(table if found else f"{title}: none", markup=False, soft_wrap=True)


def _told_size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


if __name__ == "__main__":
    run_door(main)
