"""Removing folders of a run so that nobody ever sees a part of one. Imports no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from voxtrain.run_folder import RunFolder

LEFTOVERS = (".writing_", ".replaced_", ".removing_")
"""How the names begin under which folders are filled, replaced and removed."""


def remove_folder(folder: Path) -> None:
    """Remove a complete folder: it is renamed out of the way first, so that it is there as a whole or not at all."""
    going = folder.with_name(f".removing_{folder.name}")
    shutil.rmtree(going, ignore_errors=True)
    folder.rename(going)
    shutil.rmtree(going)


def remove_leftovers(run: RunFolder) -> list[Path]:
    """Remove what a killed process left half-written or half-removed beside checkpoints and states; returns it."""
    parents = [folder for folder in (run.checkpoints, run.states) if folder.is_dir()]
    found = [path for parent in parents for path in parent.iterdir() if path.name.startswith(LEFTOVERS)]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found
