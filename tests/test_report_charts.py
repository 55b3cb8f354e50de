"""Charts: SVG that fits the page, drawn from whatever numbers there are; a whole page with its charts in it."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import report_material as made

from voxtrain.report.charts import Curve, Point, checkpoint_chart, rate_chart, runs_chart, smoothed, step_chart
from voxtrain.report.run import write_report


def test_charts_are_xml_in_the_colours_of_the_page() -> None:
    charts = [
        step_chart("a", range(1, 9001), list(np.linspace(1, 100, 9000)), log=True, limit=1.0),
        step_chart("<b>", [1], [0.5]),
        rate_chart("c", [1, 2], [0.0, 1e-5]),
        checkpoint_chart("d", [Point(0, 1.0, None, None), Point(40, 0.9, 0.8, 1.1)], 40, [40]),
        runs_chart("e", [Curve("r", [0, 8], [1.0, 0.5])], "rows", marked=True),
        runs_chart("f", [], "rows", marked=False),
    ]
    assert charts.pop() == ""
    for svg in charts:
        root = ET.fromstring(svg.replace("xlink:href", "href"))
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "var(--s1)" in svg
        assert not re.search(r"#0[1-4a][0-9a-f]{4}", svg)  # no stand-in colour is left
        assert "<style" not in svg  # it would hold for the whole page
        assert len(svg) < 40_000


def test_a_spike_survives_the_drawing_of_a_long_log() -> None:
    values = np.ones(9000)
    flat_chart = step_chart("norm", range(1, 9001), list(values))
    values[4321] = 50.0
    assert step_chart("norm", range(1, 9001), list(values)) != flat_chart
    labels = re.findall(r">([\d.]+)</text>", step_chart("norm", range(1, 9001), list(values)))
    assert max(float(label) for label in labels if float(label) < 1000) > 25  # the axis reaches up to it


def test_not_finite_values_are_left_out_of_charts() -> None:
    assert step_chart("a", [1, 2, 3], [math.nan, math.inf, math.nan]) == ""
    assert step_chart("a", [1, 2, 3], [0.0, -1.0, math.nan], log=True) == ""
    assert "at each of 2 training steps" in step_chart("a", [1, 2, 3], [1.0, math.nan, 2.0])


def test_smoothing_has_no_bias_and_follows() -> None:
    assert smoothed(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0), rel=1e-12)  # rounding of the weights
    jump = smoothed(np.repeat([0.0, 1.0], 100))
    assert jump[99] == 0.0
    assert jump[-1] > 0.999


@pytest.mark.slow
def test_a_whole_page_is_one_file_that_needs_nothing_else(tmp_path: Path) -> None:
    run = made.fake_run(tmp_path / "run")
    html = write_report(run).read_text()
    assert html.count("<svg ") == 7
    assert not re.search(r"""<(script|link|img|audio|source|iframe)[^>]+(src|href)=["']?(https?:)?//""", html)
    assert not re.search(r"""url\(["']?(https?:)?//""", html)  # both as ../shared/check_run.py has them
    assert "<script" not in html
    assert len(html) < 200_000
    assert [path.name for path in run.root.iterdir() if path.name.startswith(".writing")] == []
