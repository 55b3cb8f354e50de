"""Retention by evidence: which numbered checkpoints may go once they are judged, and why the others stay.

Nothing unjudged is ever deleted, nor what was judged since the selection was made, nor the selected step, its tie set,
the base (step 0) and the last. Whoever deletes holds the judge's lock. Imports no torch.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from voxtrain.checkpoint.folders import remove_folder
from voxtrain.checkpoint.lock import held
from voxtrain.durable import read_json
from voxtrain.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one numbered checkpoint."""

    step: int
    stays: bool
    reason: str
    size_bytes: int  # that deleting it sets free: files linked from elsewhere set nothing free


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the post-hoc process has found so far."""

    judged: frozenset[int]
    selected: int | None
    tie_set: frozenset[int]
    compared: frozenset[int]  # the steps among which the selected one was chosen


def read_evidence(run: RunFolder) -> Evidence:
    """Which steps are judged, and which of them are chosen; nothing is, where nothing was judged yet."""
    judged: frozenset[int] = frozenset()
    if run.evaluated_checkpoints.is_file():
        with run.evaluated_checkpoints.open(encoding="utf-8", newline="") as table:
            judged = frozenset(int(float(row["step"])) for row in csv.DictReader(table))
    if not run.selection.is_file():
        return Evidence(judged, None, frozenset(), frozenset())
    selection = read_json(run.selection)
    ties, compared = (frozenset(int(step) for step in selection.get(name, ())) for name in ("tie_set", "steps"))
    return Evidence(judged, int(selection["selected_step"]), ties, compared)


def verdicts(run: RunFolder) -> list[Verdict]:
    """What would become of each complete numbered checkpoint, by step."""
    evidence, steps = read_evidence(run), run.checkpoint_steps()
    return [_verdict(run, step, evidence, last=steps[-1]) for step in steps]


def _verdict(run: RunFolder, step: int, evidence: Evidence, last: int) -> Verdict:
    because = _why_it_stays(step, evidence, last)
    return Verdict(step, bool(because), because or "judged, not chosen", freed_bytes(run.checkpoint(step)))


def _why_it_stays(step: int, evidence: Evidence, last: int) -> str:
    reasons: Mapping[str, bool] = {
        "not judged yet": step not in evidence.judged,
        "nothing is selected yet": evidence.selected is None,
        "judged after the selection was made": evidence.selected is not None
        and step in evidence.judged - evidence.compared,
        "selected": step == evidence.selected,
        "in the tie set": step in evidence.tie_set and step != evidence.selected,
        "the base model": step == 0,
        "the last": step == last,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def freed_bytes(folder: Path) -> int:
    """The bytes that deleting the folder sets free."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(status.st_size for status in files if status.st_nlink == 1)


def apply(run: RunFolder) -> list[Verdict]:
    """Delete what may go, and return it. Raises InputError while somebody judges or prunes.

    The evidence is read again before each deletion, whoever may have changed it.
    """
    if all(verdict.stays for verdict in verdicts(run)):
        return []
    with held(run.evaluation_lock, "pruning"):
        return [now for planned in verdicts(run) if (now := _removed(run, planned.step)) is not None]


def _removed(run: RunFolder, step: int) -> Verdict | None:
    now = next((verdict for verdict in verdicts(run) if verdict.step == step), None)
    if now is None or now.stays:
        return None
    remove_folder(run.checkpoint(step))
    return now
