"""The head of the audit page: what became of the rows in one sentence, in chips, in a bar and in tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from voxtrain.manifest.page.words import NOTHING, count, counted, number, share, span
from voxtrain.run_folder import SPLITS

COLOURS = {"train": "s1", "validation": "s3", "test": "s6", "kept": "s1", "rejected": "s2"}


@dataclass(frozen=True)
class Chip:
    """A word in a box. kind: good, bad, warn or empty."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Tile:
    """A figure with its name."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Part:
    """A part of the bar of all rows. width: per cent."""

    name: str
    rows: str
    width: float
    colour: str


def head(audit: Mapping[str, Any], split: Mapping[str, Any]) -> dict[str, Any]:
    """Everything above the first section."""
    manifest = str(audit.get("manifest") or "")
    return {
        "name": PurePath(manifest).name or "a manifest",
        "manifest": manifest,
        "chips": _chips(audit),
        "verdict": _verdict(audit),
        "refused": list(audit.get("refused") or []),
        "bar": _bar(audit),
        "tiles": _tiles(audit),
        "warnings": list(dict.fromkeys([*(audit.get("warnings") or []), *(split.get("warnings") or [])])),
    }


def grouped_by(audit: Mapping[str, Any]) -> str:
    """What the rows are grouped by, as it is set."""
    found = audit.get("group_by")
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found or NOTHING)


def _chips(audit: Mapping[str, Any]) -> list[Chip]:
    chips = [Chip("training may not start", "bad") if audit.get("refused") else Chip("fit to train from", "good")]
    leaks = audit.get("group_by") == "row"
    chips.append(Chip(f"grouped by {grouped_by(audit)}", "warn" if leaks else ""))
    if audit.get("seed") is not None:
        chips.append(Chip(f"seed {audit['seed']}"))
    if audit.get("excluded"):
        chips.append(Chip(f"{count(audit['excluded'])} excluded by list"))
    return chips


def _verdict(audit: Mapping[str, Any]) -> list[str]:
    """The first sentence says what is left, the others why."""
    kept, rows_in = number(audit.get("rows_kept")), number(audit.get("rows_in"))
    if not rows_in > 0:
        return ["The audit says nothing of its rows."]
    if kept == rows_in:
        first = f"All {count(rows_in)} rows are kept, {span(audit.get('seconds_kept'))} of audio."
    else:
        lost = f"of {span(audit.get('seconds_in'))} of audio"
        first = f"{count(kept)} of {count(rows_in)} rows are kept, {span(audit.get('seconds_kept'))} {lost}."
    sentences = [first]
    rejects = {rule: rows for rule, rows in (audit.get("rejects_by_rule") or {}).items() if rows}
    if rejects:
        most = max(rejects, key=lambda rule: rejects[rule])
        part = share(rejects[most] / rows_in)
        sentences.append(f"Most rejects fall under {most}: {count(rejects[most])} rows, {part} of all.")
    touched = audit.get("contamination") or {}
    if touched.get("steps_touched"):
        sentences.append(
            f"Left in, the rejects would have met {share(touched['steps_touched'])} of the steps of "
            f"{touched.get('rows_per_step')} rows."
        )
    return sentences


def _bar(audit: Mapping[str, Any]) -> list[Part]:
    """The rows by what became of them."""
    rows_in, kept = number(audit.get("rows_in")), number(audit.get("rows_kept"))
    if not rows_in > 0:
        return []
    splits = audit.get("splits") or {}
    rows = {name: number((splits.get(name) or {}).get("rows")) for name in SPLITS} if splits else {"kept": kept}
    rows["rejected"] = rows_in - kept
    return [
        Part(name, count(found), round(100 * found / rows_in, 3), COLOURS[name])
        for name, found in rows.items()
        if found > 0
    ]


def _tiles(audit: Mapping[str, Any]) -> list[Tile]:
    splits = audit.get("splits") or {}
    reported = audit.get("reported") or {}
    groups = sum((size or {}).get("groups") or 0 for size in splits.values())
    spread = audit.get("kept_duration_s") or {}
    lengths = f"{span(spread.get('shortest'))} to {span(spread.get('longest'))} a row" if spread else ""
    return [
        Tile("Rows in", count(audit.get("rows_in")), span(audit.get("seconds_in"))),
        Tile("Kept", count(audit.get("rows_kept")), lengths),
        Tile("Rejected", share(audit.get("reject_share")), _rejected(audit)),
        Tile("Audio kept", span(audit.get("seconds_kept")), f"median {span(spread.get('median'))}" if spread else ""),
        Tile("Groups", count(groups) if splits else NOTHING, " / ".join(_groups(splits)) if splits else "no split"),
        Tile("Only reported", count(sum(reported.values())), counted(len([r for r in reported.values() if r]), "rule")),
    ]


def _groups(splits: Mapping[str, Any]) -> list[str]:
    return [count((splits.get(name) or {}).get("groups")) for name in SPLITS]


def _rejected(audit: Mapping[str, Any]) -> str:
    bound = (audit.get("clean") or {}).get("max_reject_share")
    lost = number(audit.get("rows_in")) - number(audit.get("rows_kept"))
    return f"{count(lost)} rows" + ("" if bound is None else f", {share(bound)} allowed")
