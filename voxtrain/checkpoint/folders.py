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
    """Remove what a killed training process left half-written or half-removed in the run folder; returns it.

    What may be another process's at this moment stays: the folder evaluation/, and a report.
    """
    parents = [folder for folder in (run.root, run.data, run.outliers, run.checkpoints, run.states) if folder.is_dir()]
    hidden = [path for parent in parents for path in parent.iterdir() if path.name.startswith(LEFTOVERS)]
    found = [path for path in hidden if not path.name.endswith(f"_{run.report.name}")]
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found
