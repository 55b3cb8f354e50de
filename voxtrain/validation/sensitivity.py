"""How far a choice depends on what was given: the weight of the stop loss, and the number of recordings."""

from __future__ import annotations

import math

from voxtrain.statistics.envelope import lowest_ranges
from voxtrain.validation.evidence import Evidence


def stop_weight_ranges(evidence: Evidence) -> list[dict[str, float | int | None]]:
    """Which checkpoint is lowest for which weight of the stop loss, the weight of diff as it is; no end: null."""
    steps = evidence.trained
    diff = [evidence.weights[0] * evidence.loss(step, "loss/diff") for step in steps]
    ranges = lowest_ranges(diff, [evidence.loss(step, "loss/stop") for step in steps])
    return [{"step": steps[r.index], "from": r.start, "to": r.end if math.isfinite(r.end) else None} for r in ranges]


def pareto_set(evidence: Evidence) -> list[int]:
    """The trained checkpoints that no other one beats in one of the two losses without being worse in the other."""
    points = {step: (evidence.loss(step, "loss/diff"), evidence.loss(step, "loss/stop")) for step in evidence.trained}

    def beaten(step: int) -> bool:
        mine = points[step]
        return any(p != mine and p[0] <= mine[0] and p[1] <= mine[1] for p in points.values())

    return [step for step in points if not beaten(step)]


def recordings_needed(evidence: Evidence, step: int | None, other: int) -> int | None:
    """How many recordings like these would show the difference that was found between two checkpoints.

    Standard errors fall with the square root of the number. None where there is no interval or no difference.
    """
    if step is None:
        return None
    found = evidence.detectable_difference(step, other)
    apart = abs(evidence.loss(step) - evidence.loss(other))
    if found is None or apart == 0 or not math.isfinite(found / apart):
        return None
    return math.ceil(evidence.groups * (found / apart) ** 2)
