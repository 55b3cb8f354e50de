"""checkpoints.csv beside the page: what was measured of each checkpoint, over texts and seeds, with intervals.

Samples of one text are alike, so that texts, never single samples, are what varies in an interval (statistics/
clusters.py). Shares of samples get the exact interval of a binomial share instead: none of 15 is not surely none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from voxtrain.durable import write_table
from voxtrain.listening.measure import seconds_per_char
from voxtrain.listening.table import Sample
from voxtrain.manifest.row import Row
from voxtrain.run_folder import RunFolder
from voxtrain.statistics.binomial import interval
from voxtrain.statistics.clusters import cluster_sums, estimate

LEVEL = 0.95
FEWEST_TEXTS = 3
"""With fewer texts the spread over texts is not known, and no interval is given."""

MEASURED = ("seconds_per_char", "leading_silence_s", "tail_silence_s", "clipped_share", "loudness_lufs")
SCORED = ("word_error_rate", "character_error_rate", "speaker_similarity")
SIGNED = ("loudness_lufs", "speaker_similarity")
"""All others cannot be below zero, nor is the end of an interval."""


@dataclass(frozen=True)
class Pace:
    """Seconds for each spoken character in the training data."""

    low: float  # 5 % of clips are faster
    middle: float
    high: float  # 5 % of clips are slower


@dataclass(frozen=True)
class Mean:
    """Over samples. `low` and `high` are NaN where no interval is known, all are where nothing was measured."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Of one checkpoint."""

    step: int
    samples: int
    failed: Mean  # share of samples that are no sound
    runaway: Mean  # share of samples that did not stop by themselves
    means: dict[str, Mean]  # of MEASURED, `pace` (times the training data's) and SCORED


def training_pace(rows: Sequence[Row]) -> Pace | None:
    """Of the rows whose length is known; None where there is none."""
    found = [seconds_per_char(row.duration_s, row.text) for row in rows if row.duration_s and row.text.strip()]
    return Pace(*(float(value) for value in np.quantile(found, (0.05, 0.5, 0.95)))) if found else None


def summaries(samples: Sequence[Sample], pace: Pace | None) -> list[Summary]:
    """Of each checkpoint that has spoken, by step."""
    steps = sorted({sample.step for sample in samples})
    return [_summary(step, [sample for sample in samples if sample.step == step], pace) for step in steps]


def _summary(step: int, samples: list[Sample], pace: Pace | None) -> Summary:
    means = {name: mean_over_texts([_measure(s, name) for s in samples], _texts(samples)) for name in MEASURED}
    ratio = math.nan if pace is None else 1 / pace.middle
    means["pace"] = mean_over_texts([ratio * _measure(s, "seconds_per_char") for s in samples], _texts(samples))
    means |= {name: mean_over_texts([getattr(s.scores, name) for s in samples], _texts(samples)) for name in SCORED}
    means = {name: mean if name in SIGNED else not_below_zero(mean) for name, mean in means.items()}
    failed, runaway = ([bool(s.failed) for s in samples], [s.runaway for s in samples if not s.failed])
    return Summary(step, len(samples), share_of(failed), share_of(runaway), means)


def mean_over_texts(values: Sequence[float], texts: Sequence[str]) -> Mean:
    """The mean of the values that are known, and its interval over texts."""
    known = [(value, text) for value, text in zip(values, texts, strict=True) if math.isfinite(value)]
    if not known:
        return Mean(math.nan, math.nan, math.nan)
    mean = float(np.mean([value for value, _ in known]))
    if len({text for _, text in known}) < FEWEST_TEXTS:
        return Mean(mean, math.nan, math.nan)
    found = estimate(*cluster_sums(np.array([[value for value, _ in known]]), [text for _, text in known]))
    reach = found.reach(LEVEL) * found.error(0)
    return Mean(mean, mean - reach, mean + reach)


def not_below_zero(mean: Mean) -> Mean:
    """The same, its interval cut at zero."""
    return replace(mean, low=max(mean.low, 0.0))  # in this order: NaN stays


def share_of(has: Sequence[bool]) -> Mean:
    """The share that has it, with the exact interval as if samples were independent of each other."""
    return Mean(sum(has) / len(has), *interval(sum(has), len(has), LEVEL)) if has else Mean(*(math.nan,) * 3)


def write_summaries(run: RunFolder, found: Sequence[Summary]) -> None:
    """Write checkpoints.csv; cells of what is not known are empty."""
    write_table(run.listening_checkpoints, [_record(summary) for summary in found])


def _record(summary: Summary) -> dict[str, Any]:
    record: dict[str, Any] = {"step": summary.step, "samples": summary.samples}
    for name, mean in {"failed": summary.failed, "runaway": summary.runaway, **summary.means}.items():
        record |= {name: mean.mean, f"{name}/low": mean.low, f"{name}/high": mean.high}
    return {name: "" if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()}


def _texts(samples: Sequence[Sample]) -> list[str]:
    return [sample.line.text for sample in samples]


def _measure(sample: Sample, name: str) -> float:
    return math.nan if sample.measures is None else float(getattr(sample.measures, name))
