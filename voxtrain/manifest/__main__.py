"""The door of the manifest room: audit, clean and split a manifest into a folder, and print the ledger.

    python -m voxtrain.manifest data.manifest=rows.jsonl out=DIR [clean.max_seconds=20 ...]
    python -m voxtrain.manifest --diff A B [--json]      what two audits have not in common

It imports no torch. Exit code 2 when training could not start from the result; the audit is written all the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from voxtrain.door import run_door, split_arguments
from voxtrain.fault import DONE, Fault, InputError
from voxtrain.run_folder import DataFolder

if TYPE_CHECKING:
    from voxtrain.settings import Settings

USES = ("data", "clean", "split", "seed", "train.batch_size", "train.grad_accum", "recipe")
"""The settings that this door makes use of, beside `out`."""


def main(arguments: list[str]) -> int:
    """Prepare the manifest that the arguments name, or compare two audits; returns the exit code. Raises InputError."""
    parser = argparse.ArgumentParser(
        prog="python -m voxtrain.manifest", description="Audit, clean and split a manifest."
    )
    parser.add_argument("settings", nargs="*", metavar="data.manifest=FILE out=DIR [KEY=VALUE ...]")
    parser.add_argument("--diff", action="store_true", help="compare two audits: folders or audit.json files")
    parser.add_argument("--json", action="store_true", help="with --diff: one JSON document on stdout")
    given = parser.parse_intermixed_args(arguments)
    paths, overrides = split_arguments(given.settings)
    if given.diff:
        from voxtrain.manifest.diff.audits import diff_main

        return diff_main(paths, given.json)
    out = [override.removeprefix("out=") for override in overrides if override.startswith("out=")]
    settings = _settings([o for o in overrides if not o.startswith("out=")], _argument_faults(paths, out))
    _prepare(settings, DataFolder(Path(out[-1]).expanduser()))
    return DONE


def _settings(overrides: list[str], faults: list[Fault]) -> Settings:
    """The settings; where arguments are wrong, those faults and all others that can be found."""
    from voxtrain.composition import unused_overrides
    from voxtrain.manifest.usable import check_head
    from voxtrain.settings import compose

    idle = unused_overrides(overrides, USES)
    faults, unused = [*faults, *idle], {fault.where for fault in idle}
    try:
        settings = compose([override for override in overrides if override not in unused])
        if faults:
            check_head(settings.data.manifest_path(), settings.data.columns, settings.data.group_by)
    except InputError as error:
        raise InputError(*faults, *error.faults) from None
    if faults:
        raise InputError(*faults)
    return settings


def _prepare(settings: Settings, folder: DataFolder) -> None:
    from voxtrain.manifest.prepare import prepare
    from voxtrain.manifest.table import tell

    data = settings.data
    try:
        audit = prepare(
            data.manifest_path(),
            data.columns,
            data.group_by,
            settings.clean,
            settings.split,
            settings.seed,
            folder,
            data.sound_memory(),
            settings.train.rows_per_step(),
            force_write=True,
        )
    except InputError as error:
        if error.ledger:
            print(f"Every reject, with its reason: {folder.rejects}\nThe same to look at: {folder.page}")
        raise
    tell(audit, folder)


def _argument_faults(paths: Sequence[Path], out: Sequence[str]) -> list[Fault]:
    faults = [Fault(str(path), "this is no setting", f"did you mean data.manifest={path}?") for path in paths]
    if not out or not out[-1]:
        faults.append(Fault("out", "the folder to write to was not given", "add out=DIR"))
    elif Path(out[-1]).expanduser().exists() and not Path(out[-1]).expanduser().is_dir():
        faults.append(Fault(f"out = {out[-1]}", "this is a file", "name a folder"))
    return faults


if __name__ == "__main__":  # workers import this module too, so the settings are loaded late
    run_door(main)
