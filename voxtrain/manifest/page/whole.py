"""data/audit.html: what became of every row of a manifest, on one page that opens from disk.

The page is made from the files of the data folder alone: audit.json, and where they are there split.json,
rejects.jsonl and reported.jsonl. Findings are streamed, so that a manifest of a million rows makes no larger page.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from voxtrain.durable import read_json, write_whole
from voxtrain.manifest.page.advice import what_to_do
from voxtrain.manifest.page.head import grouped_by, head
from voxtrain.manifest.page.histogram import MEASURES, Drawn, histogram
from voxtrain.manifest.page.ledger import calculator, fired_together, ledger_lines
from voxtrain.manifest.page.rows import with_players, worst_rows
from voxtrain.manifest.page.split import certified, largest_groups, split_lines
from voxtrain.manifest.page.words import count, decimals, harmless
from voxtrain.run_folder import DataFolder

REPEATED_SHOWN = 12
BOUNDS = {
    "seconds": ("min_seconds", "max_seconds"),
    "rms_dbfs": ("silent_dbfs",),
    "leading_silence_s": ("max_leading_silence_seconds",),
    "tail_silence_s": ("max_tail_silence_seconds",),
}
"""The settings of `clean` that are drawn as dashed lines."""


def write_page(folder: DataFolder) -> None:
    """Write audit.html into the folder from its other files; raises only where audit.json cannot be read."""
    write_whole(folder.page, page_html(folder))


def page_html(folder: DataFolder) -> str:
    """The page, as text."""
    audit = _record(read_json(folder.audit))
    split = _record(_read(folder.split))
    rejected, reported = worst_rows(folder.rejects), worst_rows(folder.reported)
    played = with_players([*rejected, *reported])
    content = {
        "head": head(audit, split),
        "folder": str(folder.root),
        "steps": what_to_do(audit, split, folder.root),
        "ledger": ledger_lines(audit),
        "together": fired_together(audit),
        "calculator": calculator(audit),
        "rejected": played[: len(rejected)],
        "reported": played[len(rejected) :],
        "charts": _charts(audit),
        "quantiles": _quantiles(audit),
        "repeated": _repeated(audit),
        "splits": split_lines(split),
        "groups": largest_groups(split),
        "grouped_by": grouped_by(audit),
        "checks": certified(split),
        "settings": _settings(audit),
    }
    return _templates().get_template("audit.html.j2").render(content)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("voxtrain.manifest.page"),
        autoescape=True,  # texts and paths of the user's data come into the page
        finalize=harmless,  # whatever has been escaped by then is no plain text, and stays as it is
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _record(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _charts(audit: dict[str, Any]) -> list[Drawn]:
    spreads, clean = _record(audit.get("distributions")), _record(audit.get("clean"))
    charts = []
    for measure in MEASURES:
        bounds = [clean[name] for name in BOUNDS.get(measure.name, ()) if isinstance(clean.get(name), int | float)]
        if measure.name in spreads:
            charts.append(histogram(measure, spreads[measure.name], bounds))
    return [chart for chart in charts if chart is not None]


def _quantiles(audit: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Measure, part of the rows, and its quantiles, for the table below the charts."""
    lines = []
    for measure in MEASURES:
        parts = _record(_record(_record(audit.get("distributions")).get(measure.name)).get("parts"))
        for part, spread in parts.items():
            if spread.get("quantiles"):
                found = [decimals(value, measure.places) for value in spread["quantiles"].values()]
                lines.append((f"{measure.title}, {measure.note}", part, [count(spread.get("rows")), *found]))
    return lines


def _repeated(audit: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [line for line in audit.get("repeated_lines") or [] if isinstance(line, dict)]
    return [(str(line.get("text")), count(line.get("rows"))) for line in lines[:REPEATED_SHOWN]]


def _settings(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """What the audit was made under, but for the long list of patterns."""
    found = []
    for group in ("clean", "split"):
        for name, value in _record(audit.get(group)).items():
            told = f"{len(value)} patterns" if name == "boilerplate" and isinstance(value, list) else json.dumps(value)
            found.append((f"{group}.{name}", told))
    return found
