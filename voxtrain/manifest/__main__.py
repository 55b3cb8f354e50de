"""The door of the manifest room: audit, clean and split a manifest into a folder, and print the ledger.

    python -m voxtrain.manifest data.manifest=rows.jsonl out=DIR [clean.max_seconds=20 ...]

It imports no torch. Exit code 2 when training could not start from the result; the audit is written all the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtrain.door import run_door, split_arguments
from voxtrain.fault import DONE, Fault, InputError
from voxtrain.manifest.audit import LEDGER_HEAD, ledger_lines, ledger_remarks
from voxtrain.manifest.prepare import prepare
from voxtrain.manifest.row import read_manifest
from voxtrain.run_folder import DataFolder
from voxtrain.settings import compose

if TYPE_CHECKING:
    from rich.table import Table


def main(arguments: list[str]) -> int:
    """Prepare the manifest that the arguments name; returns the exit code. Raises InputError."""
    parser = argparse.ArgumentParser(
        prog="python -m voxtrain.manifest", description="Audit, clean and split a manifest."
    )
    parser.add_argument("settings", nargs="*", metavar="data.manifest=FILE out=DIR [KEY=VALUE ...]")
    paths, overrides = split_arguments(parser.parse_args(arguments).settings)
    out = [override.removeprefix("out=") for override in overrides if override.startswith("out=")]
    faults = _argument_faults(paths, out)
    try:
        settings = compose([override for override in overrides if not override.startswith("out=")])
        if faults:
            read_manifest(settings.data.manifest_path(), settings.data.group_by)
    except InputError as error:
        raise InputError(*faults, *error.faults) from None
    if faults:
        raise InputError(*faults)
    folder = DataFolder(Path(out[-1]).expanduser())
    try:
        audit = prepare(
            settings.data.manifest_path(),
            settings.data.group_by,
            settings.clean,
            settings.split,
            settings.seed,
            folder,
            force_write=True,
            rows_per_step=settings.train.rows_per_step(),
        )
    except InputError as error:
        if error.ledger:
            print(f"Every reject, with its reason: {folder.rejects}")
        raise
    _tell(audit, folder)
    return DONE


def _argument_faults(paths: Sequence[Path], out: Sequence[str]) -> list[Fault]:
    faults = [Fault(str(path), "this is no setting", f"did you mean data.manifest={path}?") for path in paths]
    if not out or not out[-1]:
        faults.append(Fault("out", "the folder to write to was not given", "add out=DIR"))
    elif Path(out[-1]).expanduser().exists() and not Path(out[-1]).expanduser().is_dir():
        faults.append(Fault(f"out = {out[-1]}", "this is a file", "name a folder"))
    return faults


def _tell(audit: dict[str, Any], folder: DataFolder) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table(audit))
    for remark in ledger_remarks(audit):
        console.print(remark, markup=False)
    console.print(f"Every reject, with its reason: {folder.rejects}", markup=False, soft_wrap=True)


def _table(audit: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(audit["manifest"]), title_justify="left")
    for number, name in enumerate(LEDGER_HEAD):
        table.add_column(name, justify="right" if 1 <= number <= 4 else "left")
    for cells in ledger_lines(audit):
        table.add_row(*map(escape, cells), style="bold" if cells[0] in ("rows in", "kept") else None)
    return table


if __name__ == "__main__":
    run_door(main)
