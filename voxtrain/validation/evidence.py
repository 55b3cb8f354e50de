"""From records to what is known of each checkpoint: means over rows, intervals, probability of being best.

Each row's mean over its draws counts once. All checkpoints were judged on the same rows and draws, so that their
differences are paired; recordings, never single rows, are what varies. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtrain.durable import write_table
from voxtrain.fault import RunFailed
from voxtrain.run_folder import RunFolder
from voxtrain.statistics.best import Standing, standing
from voxtrain.statistics.clusters import Estimate, Floats, cluster_sums, estimate
from voxtrain.statistics.student import t_quantile

if TYPE_CHECKING:
    import pyarrow as pa

LEVEL = 0.95
POWER = 0.8
"""How often a difference of the size that a split can show would be shown."""
DRAWS, SEED = 20_000, 1
"""Of the simulation behind tie sets: the same records give the same set. 20,000 settle 0.05 to within 0.003."""
FEWEST_GROUPS = 5
"""With fewer recordings no interval is given. From here on 95 % intervals held the truth in at least 92 % of simulated
splits, also with skewed effects and sizes (benchmarks/results/calibration.md, which says so itself)."""

LOSSES = ("loss/total", "loss/diff", "loss/stop")


@dataclass(frozen=True)
class Evidence:
    """Held-out losses of the judged checkpoints, S of them, by step."""

    steps: tuple[int, ...]
    means: dict[str, Floats]  # of LOSSES: [S]
    estimates: dict[str, Estimate] | None  # of LOSSES, of all S; None: too few recordings
    weights: tuple[float, float]  # of diff and stop in total
    groups: int
    rows: int
    draws: int

    def loss(self, step: int, name: str = "loss/total") -> float:
        """One mean over rows."""
        return float(self.means[name][self.steps.index(step)])

    def interval(self, step: int, name: str) -> tuple[float, float] | None:
        """The interval of one mean."""
        if self.estimates is None:
            return None
        mean, found = self.loss(step, name), self.estimates[name]
        reach = found.reach(LEVEL) * found.error(self.steps.index(step))
        return mean - reach, mean + reach

    def difference_interval(self, step: int, other: int) -> tuple[float, float] | None:
        """The interval of loss/total at `step` less that at `other`, paired."""
        if self.estimates is None:
            return None
        found = self.estimates["loss/total"]
        difference, error = found.difference(self.steps.index(step), self.steps.index(other))
        return difference - found.reach(LEVEL) * error, difference + found.reach(LEVEL) * error

    def detectable_difference(self, step: int, other: int) -> float | None:
        """The true difference of loss/total that an interval of this split would tell from 0 with probability POWER."""
        if self.estimates is None:
            return None
        found = self.estimates["loss/total"]
        _, error = found.difference(self.steps.index(step), self.steps.index(other))
        return (found.reach(LEVEL) + t_quantile(POWER, found.degrees)) * error

    @property
    def trained(self) -> list[int]:
        """The steps that could be selected: all but the base whose loss is finite."""
        return [step for step in self.steps if step > 0 and np.isfinite(self.loss(step))]

    @cached_property
    def standing(self) -> Standing | None:
        """Where each of `trained` stands by loss/total; None where there are too few recordings."""
        if self.estimates is None or not self.trained:
            return None
        total, chosen = self.estimates["loss/total"], [self.steps.index(step) for step in self.trained]
        return standing(Estimate(total.means[chosen], total.influence[:, chosen], total.degrees), DRAWS, SEED)

    def probabilities_best(self) -> dict[int, float]:
        """How probable it is of each of `trained` that it has the lowest loss/total; empty where unknown."""
        found = self.standing
        return {} if found is None else dict(zip(self.trained, map(float, found.share_best), strict=True))


def gather(table: pa.Table, weight_diff: float, weight_stop: float) -> Evidence:
    """The evidence in rows.parquet. Raises RunFailed unless every checkpoint has the same rows and draws."""
    table = table.sort_by([("step", "ascending"), ("id", "ascending"), ("draw", "ascending")])
    column = {name: table[name].to_numpy() for name in ("step", "id", "group", "draw", "loss/diff", "loss/stop")}
    steps, ids = np.unique(column["step"]), np.unique(column["id"])
    draws = len(np.unique(column["draw"]))
    shape = (len(steps), len(ids), draws)
    cells = list(zip(column["id"], column["draw"], strict=True))
    each = len(ids) * draws
    if table.num_rows != each * len(steps) or any(cells[i] != cells[i % each] for i in range(len(cells))):
        raise RunFailed("rows.parquet is not checkpoints x rows x draws; remove it and judge again")
    per_row = {name: column[name].reshape(shape).mean(axis=2) for name in ("loss/diff", "loss/stop")}  # [S, N]
    per_row["loss/total"] = weight_diff * per_row["loss/diff"] + weight_stop * per_row["loss/stop"]
    clusters = column["group"][:each:draws].tolist()
    groups = len(set(clusters))
    known = groups >= FEWEST_GROUPS
    finite = {name: np.where(np.isfinite(values), values, np.nan) for name, values in per_row.items()}
    return Evidence(
        steps=tuple(int(step) for step in steps),
        means={name: per_row[name].mean(axis=1) for name in LOSSES},
        estimates={name: estimate(*cluster_sums(finite[name], clusters)) for name in LOSSES} if known else None,
        weights=(weight_diff, weight_stop),
        groups=groups,
        rows=len(ids),
        draws=draws,
    )


def write_checkpoints(run: RunFolder, evidence: Evidence) -> None:
    """Write checkpoints.csv: one line per judged step; cells of intervals are empty where there are too few groups."""
    best = evidence.probabilities_best()
    records: list[dict[str, Any]] = []
    for step in evidence.steps:
        record: dict[str, Any] = {"step": step} | {name: evidence.loss(step, name) for name in LOSSES}
        for name in LOSSES:
            low, high = evidence.interval(step, name) or ("", "")
            record |= {f"{name}/low": low, f"{name}/high": high}
        records.append(record | {"probability_best": best.get(step, "")})
    write_table(run.evaluated_checkpoints, records)
