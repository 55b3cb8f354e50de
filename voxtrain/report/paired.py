"""How far two runs lie apart: each at its selected step, paired by row and draw, with intervals over recordings.

Both were given the same rows and the same draws, so that what is hard about a row falls out of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtrain.report import words
from voxtrain.report.evidence import number
from voxtrain.report.held_out import LOSSES, HeldOut, check_alike, read_held_out
from voxtrain.report.summary import Summary
from voxtrain.statistics.clusters import cluster_sums, estimate
from voxtrain.statistics.student import t_quantile

FEWEST_RECORDINGS, LEVEL, POWER = 5, 0.95, 0.8
"""Where a run's own selection.json says others, those count."""


@dataclass(frozen=True)
class Difference:
    """A loss of one run less that of another."""

    mean: float
    low: float  # NaN, as `high` and `detectable`, where there are too few recordings or a loss is not finite
    high: float
    detectable: float  # the true difference that this split would show with the power stated


@dataclass(frozen=True)
class Paired:
    """Runs against the first one that was judged."""

    reference: str
    others: dict[str, dict[str, Difference]]  # by run, then by loss
    steps: dict[str, int]  # the step of each run that was compared
    unjudged: list[str]
    rows: int
    recordings: int
    draws: int
    level: float
    power: float
    fewest: int


def paired(summaries: Sequence[Summary]) -> Paired | None:
    """The runs compared; None where fewer than two were judged. Raises InputError where they were not judged alike."""
    found = [(summary, read_held_out(summary.evidence)) for summary in summaries]
    judged = [(summary, held_out) for summary, held_out in found if held_out is not None]
    if len(judged) < 2:
        return None
    check_alike([(summary.name, held_out) for summary, held_out in judged])
    reference, first = judged[0]
    stated = reference.evidence.selection or {}
    level, power = _stated(stated, "level", LEVEL), _stated(stated, "power", POWER)
    fewest = int(_stated(stated, "fewest_recordings", FEWEST_RECORDINGS))
    return Paired(
        reference=reference.name,
        others={
            summary.name: {name: _difference(held_out, first, name, level, power, fewest) for name in LOSSES}
            for summary, held_out in judged[1:]
        },
        steps={summary.name: held_out.step for summary, held_out in judged},
        unjudged=[summary.name for summary, held_out in found if held_out is None],
        rows=len(first.rows),
        recordings=len(set(first.recordings)),
        draws=first.draws,
        level=level,
        power=power,
        fewest=fewest,
    )


def _difference(of: HeldOut, less: HeldOut, name: str, level: float, power: float, fewest: int) -> Difference:
    both = np.stack([of.losses[name], less.losses[name]])
    mean = float(both[0].mean() - both[1].mean())
    if len(set(less.recordings)) < fewest or not np.isfinite(both).all():
        return Difference(mean, math.nan, math.nan, math.nan)
    found = estimate(*cluster_sums(both, less.recordings))
    mean, error = found.difference(0, 1)
    reach = found.reach(level) * error
    detectable = (found.reach(level) + t_quantile(power, found.degrees)) * error
    return Difference(mean, mean - reach, mean + reach, detectable)


def _stated(selection: Any, key: str, otherwise: float) -> float:
    value = number(selection.get(key))
    return value if math.isfinite(value) else otherwise


def verdict(found: Paired, name: str) -> str:
    """One sentence on how a run stands to the reference by loss/total."""
    total = found.others[name]["loss/total"]
    at = f"{name} (step {found.steps[name]:,})"
    than = f"{found.reference} (step {found.steps[found.reference]:,})"
    apart = f"{words.loss(abs(total.mean))}"
    if not math.isfinite(total.low):
        side = "lower" if total.mean < 0 else "higher"
        return f"{at} has a held-out loss/total {apart} {side} than {than}; how sure that is cannot be said"
    if total.low <= 0 <= total.high:
        return (
            f"This split cannot tell {at} from {than}: their held-out loss/total lies {apart} apart, and it would show "
            f"a true difference of {words.loss(total.detectable)} {found.power:.0%} of the time".replace("%", " %")
        )
    side = "below" if total.mean < 0 else "above"
    return f"{at} lies {apart} {side} {than} in held-out loss/total ({interval(total)})"


def interval(difference: Difference) -> str:
    """Its interval in words; nothing where there is none."""
    known = math.isfinite(difference.low)
    return f"{words.signed(difference.low)} to {words.signed(difference.high)}" if known else ""
