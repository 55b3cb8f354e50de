"""What a run cost: memory, time and disk."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from voxtrain.report.evidence import number
from voxtrain.report.summary import Summary

GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """What one run took; NaN where that is not known."""

    peak_gib: float  # of training
    train_s: float
    after_s: float  # validating, listening, selecting and reporting
    disk_gib: float  # of the whole run folder; a file with several names counts once
    checkpoint_gib: float  # of one numbered checkpoint by itself, in the middle


def cost(summary: Summary) -> Cost:
    """The cost of one run."""
    evidence = summary.evidence
    stages = (evidence.post_hoc or {}).get("steps")
    seconds = [number(stage.get("seconds")) for stage in stages] if isinstance(stages, list) else []
    steps = evidence.run.checkpoint_steps()
    middle = evidence.run.checkpoint(steps[len(steps) // 2]) if steps else None
    return Cost(
        peak_gib=summary.peak_gib,
        train_s=summary.train_seconds,
        after_s=sum(seconds) if seconds else math.nan,
        disk_gib=size_gib(evidence.run.root),
        checkpoint_gib=size_gib(middle) if middle else math.nan,
    )


def size_gib(folder: Path) -> float:
    """What the files under a folder hold; links are not followed, and a file that goes meanwhile is not counted."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = (Path(place) / name).lstat()
            except OSError:
                continue
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values()) / GIB
