"""Distributions of what was measured, and their histograms."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import audit_material as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.durable import read_json
from voxtrain.manifest.distributions import EDGES, KEPT, PARTS, distributions
from voxtrain.manifest.page.histogram import BARS, MEASURES, WIDTH, histogram
from voxtrain.run_folder import DataFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return made.data_folder(tmp_path_factory.mktemp("run") / "data")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.one_of(st.floats(-200, 500, width=32), st.just(float("nan")))), max_size=40
    ),
    st.sampled_from(sorted(EDGES)),
)
def test_every_known_row_is_in_one_bin_of_its_part(rows: list[tuple[int, float]], name: str) -> None:
    split = np.array([code for code, _ in rows], dtype=np.uint8)
    values = np.array([value for _, value in rows], dtype=np.float32)
    spread = distributions(split, {name: values})[name]
    first, last, bins = EDGES[name]
    assert (spread["edges"][0], spread["edges"][-1], len(spread["edges"])) == (first, last, bins + 1)
    members = {
        "rejected": split == 0,
        "train": split == 1,
        "validation": split == 2,
        "test": split == 3,
        KEPT: split > 0,
    }
    assert tuple(spread["parts"]) == PARTS
    for part, found in spread["parts"].items():
        known = values[members[part] & ~np.isnan(values)]
        assert found["rows"] == len(known) == sum(found["counts"])
        if len(known):
            # printed with six figures of a float32, which has seven
            assert found["quantiles"]["p50"] == pytest.approx(np.median(known.astype(np.float64)), rel=1e-5, abs=1e-5)
        else:
            assert found["quantiles"] is None


def test_what_lies_outside_the_edges_and_digital_silence_are_counted() -> None:
    values = np.array([-np.inf, -95.0, -20.1, 3.0, np.nan], dtype=np.float32)
    spread = distributions(np.ones(5, dtype=np.uint8), {"rms_dbfs": values})["rms_dbfs"]
    counts = spread["parts"]["train"]["counts"]
    assert (counts[0], counts[29], counts[-1], sum(counts)) == (2, 1, 1, 4)  # -20.1 lies in [-22, -20)
    json.dumps(spread, allow_nan=False)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_histogram_draws_what_was_counted(folder: DataFolder, measure: Any) -> None:
    spread = read_json(folder.audit)["distributions"][measure.name]
    drawn = histogram(measure, spread, [spread["edges"][5], 1e9])
    assert drawn is not None
    root = ET.fromstring(drawn.svg)
    strips = [part for part in ("train", "validation", "test", "rejected") if spread["parts"][part]["rows"]]
    bars = [path.get("d", "") for path in root.iter("path") if path.get("fill", "").startswith("var(--s")]
    assert [path.count("M") for path in bars] == [
        sum(count > 0 for count in spread["parts"][part]["counts"]) for part in strips
    ]
    assert len([path for path in root.iter("path") if path.get("stroke-dasharray")]) == len(strips)  # one bound inside
    for part, path in zip(strips, bars, strict=True):
        counts = [count for count in spread["parts"][part]["counts"] if count]
        heights = [float(height) for height in re.findall(r"v-([\d.]+)", path)]
        assert heights == [pytest.approx(max(1.0, BARS * count / max(counts)), abs=0.05) for count in counts]  # 0.1 px
    places = [float(x) for path in bars for x in re.findall(r"M([\d.]+) ", path)]
    assert min(places) >= 0
    assert max(places) < WIDTH
    assert all(f"{part}: " in root.get("aria-label", "") for part in strips)


def test_a_histogram_of_nothing_is_none() -> None:
    spread = distributions(np.zeros(2, dtype=np.uint8), {"peak": np.full(2, np.nan, dtype=np.float32)})["peak"]
    assert histogram(MEASURES[4], spread, []) is None
