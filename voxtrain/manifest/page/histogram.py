"""A measure of the rows as strips of bars, one below the other for every split, as a small SVG in the page's colours.

Drawn from the counts in audit.json by hand: matplotlib alone would take longer to import than a small audit takes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtrain.manifest.page.words import count, decimals, figure, number

WIDTH, LEFT, RIGHT = 340.0, 6.0, 6.0  # as wide as it is shown, three in a line, so that letters keep their size
STRIP, BARS, AXIS = 50.0, 27.0, 20.0
COLOURS = {"train": "s1", "validation": "s3", "test": "s6", "kept": "s1", "rejected": "s2"}


@dataclass(frozen=True)
class Measure:
    """A measure as it is drawn."""

    name: str  # in audit.json
    title: str
    note: str
    unit: str
    ticks: Sequence[float]
    places: int  # decimals of a median that mean something
    open_below: bool = False  # the first bin holds values under the first edge
    open_above: bool = True


MEASURES = (
    Measure("seconds", "Length", "seconds", "s", (0, 10, 20, 30), 1),
    Measure("chars_per_second", "Pace", "characters a second", "/s", (0, 10, 20, 30, 40), 1),
    Measure("characters", "Text", "characters", "", (0, 100, 200, 300, 400), 0),
    Measure("rms_dbfs", "Level", "RMS, dB below full scale", "dB", (-80, -60, -40, -20, 0), 1, True, False),
    Measure("peak", "Peak", "1 is full scale", "", (0, 0.25, 0.5, 0.75, 1), 2),
    Measure("leading_silence_s", "Silence before", "seconds before the first sound", "s", (0, 0.5, 1, 1.5, 2), 2),
    Measure("tail_silence_s", "Silence after", "seconds after the last sound", "s", (0, 0.5, 1, 1.5, 2), 2),
)


@dataclass(frozen=True)
class Drawn:
    """A chart with its title; the SVG is made here and holds no text of the user's."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Strip:
    """One part of the rows: its name, bars and median."""

    part: str
    rows: int
    counts: Sequence[int]
    median: float


def histogram(measure: Measure, spread: Mapping[str, Any], bounds: Sequence[float]) -> Drawn | None:
    """The chart of one measure of audit.json's `distributions`; None where no row is known. bounds: dashed lines."""
    edges, strips = _strips(spread)
    if not strips:
        return None
    scale = _Scale(edges[0], edges[-1])
    bottom = STRIP * len(strips)
    inside = [bound for bound in bounds if edges[0] < bound < edges[-1]]
    parts = [_strip(strip, STRIP * place, scale, measure) for place, strip in enumerate(strips)]
    parts += [_bound(scale(bound), STRIP * place) for place in range(len(strips)) for bound in inside]
    parts += [_tick(tick, scale, bottom, measure) for tick in measure.ticks]
    told = "; ".join(
        f"{strip.part}: {strip.rows} rows, median {decimals(strip.median, measure.places)}" for strip in strips
    )
    head = (
        f'<svg viewBox="0 0 {WIDTH:g} {bottom + AXIS:g}" role="img" font-size="11" '
        f'aria-label="{html.escape(f"{measure.title}, {measure.note}. {told}")}">'
    )
    note = measure.note + (f"; dashed: {' and '.join(map(figure, inside))}" if inside else "")
    return Drawn(measure.title, note, head + "".join(parts) + "</svg>")


def _strips(spread: Mapping[str, Any]) -> tuple[list[float], list[Strip]]:
    """The edges, and the parts that have rows; the kept ones as a whole only where they lie in no split."""
    parts = spread["parts"]
    strips: list[Strip] = []
    for part in ("train", "validation", "test", "kept", "rejected"):
        found = parts.get(part) or {}
        counts = found.get("counts") or []
        if sum(counts) and (part != "kept" or not strips):
            strips.append(Strip(part, sum(counts), counts, number((found.get("quantiles") or {}).get("p50"))))
    return spread["edges"], strips


class _Scale:
    """From a value to its place between the margins."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.factor = first, (WIDTH - LEFT - RIGHT) / (last - first)

    def __call__(self, value: float) -> float:
        return LEFT + (value - self.first) * self.factor


def _strip(strip: Strip, top: float, scale: _Scale, measure: Measure) -> str:
    base, colour = top + STRIP - 6, COLOURS[strip.part]
    width = (WIDTH - LEFT - RIGHT) / len(strip.counts)
    bars = "".join(
        f"M{LEFT + place * width:.1f} {base:g}v-{max(1.0, BARS * found / max(strip.counts)):.1f}"
        f"h{max(width - 0.6, 0.6):.1f}V{base:g}z"
        for place, found in enumerate(strip.counts)
        if found
    )
    words = f"{count(strip.rows)} row{'' if strip.rows == 1 else 's'}"
    if math.isfinite(strip.median):
        words += f", median {decimals(strip.median, measure.places)}"
        words += f"{' ' if measure.unit[:1].isalpha() else ''}{measure.unit}"
    return (
        f'<text x="{LEFT:g}" y="{top + 12:g}" fill="var(--ink)" font-weight="600">{strip.part}</text>'
        f'<text x="{WIDTH - RIGHT:g}" y="{top + 12:g}" text-anchor="end" fill="var(--muted)">{words}</text>'
        f'<path d="M{LEFT:g} {base:g}H{WIDTH - RIGHT:g}" stroke="var(--line)"/>'
        f'<path d="{bars}" fill="var(--{colour})"/>' + _median(strip, base, scale)
    )


def _median(strip: Strip, base: float, scale: _Scale) -> str:
    if not math.isfinite(strip.median):
        return ""
    place = min(max(scale(strip.median), LEFT), WIDTH - RIGHT)
    return f'<path d="M{place:.1f} {base + 1:g}l3.5 5h-7z" fill="var(--ink)"/>'


def _bound(place: float, top: float) -> str:
    """Beside the bars alone: the words above them stay free."""
    path = f"M{place:.1f} {top + STRIP - 6:g}v-{BARS + 1:g}"
    return f'<path d="{path}" stroke="var(--mark)" stroke-dasharray="3 3"/>'


def _tick(tick: float, scale: _Scale, bottom: float, measure: Measure) -> str:
    first, last = tick == measure.ticks[0], tick == measure.ticks[-1]
    anchor = "start" if first else "end" if last else "middle"
    sign = "\N{LESS-THAN OR EQUAL TO}" if first and measure.open_below else ""
    sign = "\N{GREATER-THAN OR EQUAL TO}" if last and measure.open_above else sign
    return (
        f'<text x="{scale(tick):.1f}" y="{bottom + 14:g}" text-anchor="{anchor}" fill="var(--muted)">'
        f"{sign}{figure(tick)}</text>"
    )
