"""From records to what is known of each checkpoint: means over rows, intervals, probability of being best.

Each row's mean over its draws counts once. All checkpoints were judged on the same rows and draws, so that their
differences are paired; whole recordings are resampled. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtrain.durable import write_table
from voxtrain.fault import RunFailed
from voxtrain.run_folder import RunFolder
from voxtrain.statistics.bootstrap import Floats, percentile_interval, resampled_means, share_lowest

if TYPE_CHECKING:
    import pyarrow as pa

LEVEL = 0.95
RESAMPLES = 4000
SEED = 1  # of the resampling: the same records give the same intervals
FEWEST_GROUPS = 5
"""With fewer recordings resampling says nothing: there are hardly any other draws of them."""

LOSSES = ("loss/total", "loss/diff", "loss/stop")


@dataclass(frozen=True)
class Evidence:
    """Held-out losses of the judged checkpoints, S of them, by step."""

    steps: tuple[int, ...]
    means: dict[str, Floats]  # of LOSSES: [S]
    resampled: dict[str, Floats] | None  # of LOSSES: [R, S], the same draws of recordings for all; None: too few
    weights: tuple[float, float]  # of diff and stop in total
    groups: int
    rows: int
    draws: int

    def loss(self, step: int, name: str = "loss/total") -> float:
        """One mean over rows."""
        return float(self.means[name][self.steps.index(step)])

    def difference_interval(self, step: int, other: int) -> tuple[float, float] | None:
        """The interval of loss/total at `step` less that at `other`, paired."""
        if self.resampled is None:
            return None
        total = self.resampled["loss/total"]
        low, high = percentile_interval(total[:, self.steps.index(step)] - total[:, self.steps.index(other)], LEVEL)
        return float(low), float(high)

    def probabilities_best(self) -> dict[int, float]:
        """The share of draws in which each trained checkpoint has the lowest loss/total; empty where unknown."""
        trained = [i for i, step in enumerate(self.steps) if step > 0]
        if self.resampled is None or not trained:
            return {}
        total = np.nan_to_num(self.resampled["loss/total"][:, trained], nan=np.inf)
        return {self.steps[i]: float(share) for i, share in zip(trained, share_lowest(total), strict=True)}


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
    enough = groups >= FEWEST_GROUPS
    return Evidence(
        steps=tuple(int(step) for step in steps),
        means={name: per_row[name].mean(axis=1) for name in LOSSES},
        resampled={n: resampled_means(per_row[n], clusters, RESAMPLES, SEED) for n in LOSSES} if enough else None,
        weights=(weight_diff, weight_stop),
        groups=groups,
        rows=len(ids),
        draws=draws,
    )


def write_checkpoints(run: RunFolder, evidence: Evidence) -> None:
    """Write checkpoints.csv: one line per judged step; cells of intervals are empty where there are too few groups."""
    best = evidence.probabilities_best()
    records: list[dict[str, Any]] = []
    for index, step in enumerate(evidence.steps):
        record: dict[str, Any] = {"step": step}
        record |= {name: float(evidence.means[name][index]) for name in LOSSES}
        for name in LOSSES:
            record |= {f"{name}/low": "", f"{name}/high": ""}
            if evidence.resampled is not None:
                low, high = percentile_interval(evidence.resampled[name][:, index], LEVEL)
                record |= {f"{name}/low": float(low), f"{name}/high": float(high)}
        records.append(record | {"probability_best": best.get(step, "")})
    write_table(run.evaluated_checkpoints, records)
