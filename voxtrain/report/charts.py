"""Charts as SVG text that takes its colours from the page, so that light and dark mode need one drawing.

matplotlib draws with the stand-in colours below, which are then replaced by the page's CSS variables. A chart is drawn
about as wide as it is shown, three or two of them in a line, so that its letters can be read on a phone too.
"""

from __future__ import annotations

import html
import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

SMALL, LARGE = (335, 215), (430, 235)  # CSS pixels at which the letters have their size: three, or two, in a line
MOST_POINTS = (
    400  # of a line; a log of thrice as many is drawn as the range of each bin: spikes stay, the page is small
)

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05", "#0a0a06")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "surface"} | {c: f"s{n}" for n, c in enumerate(SERIES, 1)}
FIRST, SECOND = SERIES[:2]
DASHES = ("-", "--", ":", "-.")

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay text: small, and in the page's font
    "svg.hashsalt": "voxtrain",  # the same drawing gives the same bytes
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Point:
    """A judged checkpoint."""

    step: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """A line of a chart of several runs."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def step_chart(
    label: str, steps: Sequence[int], values: Sequence[float], *, log: bool = False, limit: float | None = None
) -> str:
    """A figure of every training step: pale as it was, strong as an exponential mean. limit: a dashed line."""
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    keep = np.isfinite(y) & ((y > 0) | (not log))
    x, y = x[keep], y[keep]

    def draw(axes: Axes) -> None:
        if len(x) > 3 * MOST_POINTS:
            edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)[:-1]
            axes.fill_between(
                x[edges], np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges), color=FIRST, alpha=0.22, lw=0
            )
        else:
            axes.plot(x, y, color=FIRST, alpha=0.3, lw=1)
        thin = slice(None, None, max(1, len(x) // MOST_POINTS))
        axes.plot(x[thin], smoothed(y)[thin], color=FIRST)
        if limit:
            axes.axhline(limit, color=SECOND, lw=1.2, ls="--")
        if log:
            _log_scale(axes, y if limit is None else np.append(y, limit))

    return _svg(draw, f"{label} at each of {len(x)} training steps", "step", LARGE, enough=len(x) > 0)


def checkpoint_chart(label: str, points: Sequence[Point], selected: int | None, tie_set: Sequence[int]) -> str:
    """A held-out loss by checkpoint: intervals where known, the base as a dashed line, the selected as a ring."""
    found = [point for point in points if math.isfinite(point.value)]

    def draw(axes: Axes) -> None:
        for point in found:
            if point.low is not None and point.high is not None:
                axes.plot([point.step] * 2, [point.low, point.high], color=MUTED, lw=1.2)
        base = [point for point in found if point.step == 0]
        if base:
            axes.axhline(base[0].value, color=MUTED, lw=1, ls="--")
        axes.plot([p.step for p in found], [p.value for p in found], color=FIRST, marker="o", ms=4.5)
        tied = [p for p in found if p.step in tie_set and p.step != selected]
        axes.plot([p.step for p in tied], [p.value for p in tied], ls="", marker="o", ms=9, mfc="none", mec=FIRST)
        chosen = [p for p in found if p.step == selected]
        for point in chosen:
            axes.plot(point.step, point.value, marker="o", ms=10, color=SECOND, mec=PAPER, mew=2)
        axes.margins(x=0.05, y=0.12)

    told = "; ".join(f"step {point.step}: {point.value:.4f}" for point in found)
    return _svg(draw, f"{label} of {len(found)} checkpoints: {told}", "step", SMALL, enough=len(found) > 0)


def rate_chart(label: str, steps: Sequence[int], values: Sequence[float]) -> str:
    """A course without noise, such as the learning rate."""
    thin = slice(None, None, max(1, len(steps) // MOST_POINTS))

    def draw(axes: Axes) -> None:
        axes.plot(steps[thin], values[thin], color=FIRST)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))

    return _svg(draw, f"{label} at each of {len(steps)} training steps", "step", LARGE, enough=len(steps) > 0)


def runs_chart(label: str, curves: Sequence[Curve], x_label: str, *, marked: bool) -> str:
    """The same figure of several runs, told apart by colour and, beyond six, by dashes."""
    drawn = [
        (place, curve) for place, curve in enumerate(curves) if len(curve.x)
    ]  # a run keeps its colour without them

    def draw(axes: Axes) -> None:
        for place, curve in drawn:
            dash = DASHES[place // len(SERIES) % len(DASHES)]
            marker = "o" if marked else None
            axes.plot(curve.x, curve.y, color=SERIES[place % len(SERIES)], ls=dash, marker=marker, ms=4, lw=1.6)

    return _svg(draw, f"{label} of {', '.join(curve.label for _, curve in drawn)}", x_label, LARGE, enough=bool(drawn))


def smoothed(values: np.ndarray) -> np.ndarray:
    """The exponential mean over about a thirtieth of the values, at least five, without a bias at the start.

    values: [N] finite. Returns [N].
    """
    keep = 1 - 2 / (smoothing_window(len(values)) + 1)
    mean, weight, out = 0.0, 0.0, np.empty(len(values))
    for place, value in enumerate(values):
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out[place] = mean / weight
    return out


def smoothing_window(steps: int) -> int:
    """Over how many steps the strong line averages."""
    return max(5, steps // 30)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    axes.set_yscale("log")
    reach = values.max() / values.min()
    if reach < 4:  # powers of ten would leave the axis bare
        axes.yaxis.set_major_locator(MaxNLocator(4))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1,) if reach > 30 else (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _svg(draw: Callable[[Axes], None], told: str, x_label: str, size: tuple[int, int], *, enough: bool) -> str:
    """Draw and return SVG text; empty where there is nothing to draw."""
    if not enough:
        return ""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")  # SVG has 72 pixels an inch
        axes = figure.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x_label)
        axes.tick_params(length=0)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _for_the_page(text.getvalue(), told, size)


def _for_the_page(svg: str, told: str, size: tuple[int, int]) -> str:
    """The bare <svg> element in the page's colours and font, with its words for those who do not see it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    referred = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in referred else "", svg)
    svg = re.sub(r"#(?:01|02|03|04|0a)[0-9a-f]{4}", lambda found: _variable(found[0]), svg)
    svg = re.sub(r" font-family: [^;\"]*;| transform=\"rotate\(-?0 [^)]*\)\"", "", svg)
    head = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{html.escape(told)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
    svg = re.sub(r"([ML ]-?\d+\.\d)\d+(?=[\s\"])", r"\1", svg)  # a tenth of a pixel is enough
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _variable(colour: str) -> str:
    return f"var(--{VARIABLES[colour]})" if colour in VARIABLES else colour
