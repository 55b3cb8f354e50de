"""saves.csv: what each save wrote, how long that took, and how long training stood still for it.

Append-only, over all sittings of a run; a step that is saved again after a resume has two rows.
"""

from __future__ import annotations

import csv
import io
from contextlib import suppress
from dataclasses import dataclass

from voxtrain.checkpoint.background import Job
from voxtrain.checkpoint.held import Held
from voxtrain.run_folder import RunFolder

COLUMNS = (
    "step",
    "saved",  # what, joined by ` and `
    "gib",  # written, nearly: indices and facts are small
    "seconds",  # from beginning to end
    "stalled_seconds",  # of them, those in which no step was made
    "copied_gib",  # host memory taken for copies, at most
)


@dataclass(frozen=True, slots=True)
class Save:
    """One save that is under way or done."""

    step: int
    jobs: tuple[Job, ...]
    held: Held | None  # None: nothing else happened meanwhile
    at_the_boundary_s: float  # in which the save was prepared, or done where nothing else happened meanwhile

    def row(self, seconds: float) -> list[str]:
        """The cells of its row. seconds: that writing took, where it went on beside training."""
        stalled_s = self.at_the_boundary_s + (0.0 if self.held is None else self.held.stalled_s)
        taken_s = self.at_the_boundary_s + (0.0 if self.held is None else seconds)
        gib = sum(job.needed_bytes for job in self.jobs) / 2**30
        copied = 0.0 if self.held is None else self.held.most_copied_bytes / 2**30
        figures = (f"{value:.4f}" for value in (gib, taken_s, min(stalled_s, taken_s), copied))
        return [str(self.step), " and ".join(job.what for job in self.jobs), *figures]


def write_save(run: RunFolder, save: Save, seconds: float) -> None:
    """Append the row of a save. A log that cannot be written is no reason to stop: what was saved is there."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    with suppress(OSError):
        if not run.saves.exists():
            table.writerow(COLUMNS)
        table.writerow(save.row(seconds))
        with run.saves.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())
