"""Held-out losses in parts: by flow time, by length of the clip, and the stop loss beside that of training.

Imports no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from voxtrain.durable import read_log_rows
from voxtrain.run_folder import RunFolder
from voxtrain.validation.table import T_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

LENGTHS = 3
"""Parts of the rows by length, each with as many rows."""
POSITIONS_PER_S = 6.25
GAUGED_STEPS = 50
"""Training steps before a checkpoint whose mean loss/stop stands beside the held-out one."""


def by_flow_time(table: pa.Table) -> list[dict[str, Any]]:
    """loss/diff of every checkpoint in equal parts of flow time from 0 (data) to 1 (noise)."""
    steps = table["step"].to_numpy()
    found = []
    for k, name in enumerate(T_COLUMNS):
        values = table[name].to_numpy()
        means = {str(step): _mean(values[steps == step]) for step in np.unique(steps)}
        found.append({"from": k / len(T_COLUMNS), "to": (k + 1) / len(T_COLUMNS), "loss/diff": means})
    return found


def by_length(table: pa.Table, weight_diff: float, weight_stop: float) -> list[dict[str, Any]]:
    """The losses of every checkpoint on the shortest, the middle and the longest rows."""
    column = {name: table[name].to_numpy() for name in ("step", "id", "positions", "loss/diff", "loss/stop")}
    column["loss/total"] = weight_diff * column["loss/diff"] + weight_stop * column["loss/stop"]
    lengths = dict(zip(column["id"], column["positions"], strict=True))
    shortest_first = sorted(lengths, key=lambda name: (lengths[name], name))
    found = []
    for part in filter(len, np.array_split(np.array(shortest_first, dtype=object), LENGTHS)):
        inside = np.isin(column["id"].astype(str), part.astype(str))
        losses = {
            name: {
                str(step): _mean(column[name][inside & (column["step"] == step)]) for step in np.unique(column["step"])
            }
            for name in ("loss/total", "loss/diff", "loss/stop")
        }
        ends = [float(lengths[part[end]]) / POSITIONS_PER_S for end in (0, -1)]
        found.append({"from_s": ends[0], "to_s": ends[1], "rows": len(part), **losses})
    return found


def stop_gauge(run: RunFolder, held_out: dict[int, float]) -> list[dict[str, float | int | None]]:
    """Of each trained checkpoint: loss/stop on the rows of its last training steps, and on held-out rows.

    A stop head that learns the clips by heart shows here first: the published run ended at 0.000005 in training and
    0.15 on held-out rows.
    """
    logged = {int(row["step"]): row.get("train/loss/stop") or "nan" for row in read_log_rows(run.metrics)}
    found: list[dict[str, float | int | None]] = []
    for step, value in held_out.items():
        if step > 0:
            window = [float(logged[s]) for s in range(max(1, step - GAUGED_STEPS + 1), step + 1) if s in logged]
            finite = [each for each in window if math.isfinite(each)]
            train = float(np.mean(finite)) if finite else None
            found.append({"step": step, "train": train, "held_out": value if math.isfinite(value) else None})
    return found


def _mean(values: np.ndarray) -> float | None:
    """Of what is known; None where nothing is, or where a loss is not finite."""
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else math.nan
    return mean if math.isfinite(mean) else None
