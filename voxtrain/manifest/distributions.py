"""How lengths, levels, silences and pace are spread over the rows, by split: counts and quantiles for audit.json.

The edges are fixed, not fitted to the data, so that two audits can be laid over each other. The first bin holds
everything below it too, the last everything above.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtrain.run_folder import SPLITS

REJECTED, KEPT = "rejected", "kept"
PARTS = (REJECTED, *SPLITS, KEPT)
"""What is told apart: the splits by their codes 1, 2, 3; 0 is rejected; every other code is kept, in whatever split."""

QUANTILES = {"p1": 0.01, "p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99}
SIGNIFICANT = 6  # figures of a quantile: measures are float32, which has about seven

EDGES: dict[str, tuple[float, float, int]] = {
    "seconds": (0.0, 30.0, 60),  # first edge, last edge, bins
    "chars_per_second": (0.0, 40.0, 40),
    "rms_dbfs": (-80.0, 0.0, 40),
    "peak": (0.0, 1.0, 40),
    "leading_silence_s": (0.0, 2.0, 40),
    "tail_silence_s": (0.0, 2.0, 40),
    "characters": (0.0, 400.0, 40),
}


def distributions(split: NDArray[np.uint8], measures: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Of every measure its `edges` [bins + 1] and, for each of PARTS, `rows`, `counts` [bins] and `quantiles`.

    split: [N], 0 rejected, 1 train, 2 validation, 3 test, anything else kept without a split. measures: [N] each, NaN
    where unknown; names that EDGES does not know are an error. `quantiles` is None where no row is known.
    """
    members = {REJECTED: split == 0, **{name: split == code for code, name in enumerate(SPLITS, start=1)}}
    members[KEPT] = ~members[REJECTED]
    return {name: _spread(name, values, members) for name, values in measures.items()}


def _spread(name: str, values: NDArray[np.float32], members: Mapping[str, NDArray[np.bool_]]) -> dict[str, Any]:
    first, last, bins = EDGES[name]
    edges = np.linspace(first, last, bins + 1)
    known = ~np.isnan(values)
    parts = {}
    for part, chosen in members.items():
        found = values[chosen & known].astype(np.float64)
        found = np.nan_to_num(found, posinf=last, neginf=first)  # digital silence has no level
        counts, _ = np.histogram(np.clip(found, first, last), edges)
        parts[part] = {"rows": len(found), "counts": counts.tolist(), "quantiles": _quantiles(found)}
    return {"edges": [float(f"{edge:.{SIGNIFICANT}g}") for edge in edges], "parts": parts}


def _quantiles(values: NDArray[np.float64]) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.quantile(values, list(QUANTILES.values()))
    return {name: float(f"{value:.{SIGNIFICANT}g}") for name, value in zip(QUANTILES, found, strict=True)}
