"""The split on the audit page: shares expected and found, the largest groups, and the leakage certificate in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtrain.manifest.page.head import COLOURS
from voxtrain.manifest.page.words import count, counted, number, share, shown, span
from voxtrain.run_folder import SPLITS

GROUPS_SHOWN = 8  # of each split
EXAMPLES_SHOWN, EXAMPLE_LETTERS = 3, 60


@dataclass(frozen=True)
class SplitLine:
    """A split: what was expected of it and what it has."""

    name: str
    colour: str
    groups: str
    rows: str
    audio: str
    expected: str
    shares: tuple[str, str, str]  # of groups, rows, seconds
    width: float  # share of the rows, per cent
    mark: float  # expected share, per cent


@dataclass(frozen=True)
class GroupLine:
    """One of the largest groups of a split."""

    name: str
    rows: str
    audio: str
    width: float  # of the largest, per cent


@dataclass(frozen=True)
class Check:
    """A sentence of the certificate. kind: empty for what holds, `no` for what does not, `open` for what is told."""

    kind: str
    text: str
    examples: tuple[str, ...] = ()


def split_lines(split: Mapping[str, Any]) -> list[SplitLine]:
    """The splits that have rows or should have."""
    lines = []
    for name in SPLITS:
        size = (split.get("splits") or {}).get(name)
        if isinstance(size, dict) and (size.get("rows") or size.get("expected_share")):
            shares = tuple(share(size.get(f"share_of_{what}")) for what in ("groups", "rows", "seconds"))
            lines.append(
                SplitLine(
                    name=name,
                    colour=COLOURS[name],
                    groups=count(size.get("groups")),
                    rows=count(size.get("rows")),
                    audio=span(size.get("seconds")),
                    expected=share(size.get("expected_share")),
                    shares=(shares[0], shares[1], shares[2]),
                    width=_per_cent(size.get("share_of_rows")),
                    mark=_per_cent(size.get("expected_share")),
                )
            )
    return lines


def _per_cent(part: Any) -> float:
    found = number(part)
    return round(100 * min(max(found, 0.0), 1.0), 3) if math.isfinite(found) else 0.0


def largest_groups(split: Mapping[str, Any]) -> list[tuple[str, str, str, list[GroupLine]]]:
    """Of each split its name and colour, how many groups it has, and the largest."""
    tables = []
    for name in SPLITS:
        size = (split.get("splits") or {}).get(name) or {}
        groups = [group for group in size.get("largest_groups") or [] if isinstance(group, dict)]
        if groups:
            most = max(number(group.get("rows")) for group in groups)
            lines = [
                GroupLine(
                    str(group.get("group")),
                    count(group.get("rows")),
                    span(group.get("seconds")),
                    round(100 * number(group.get("rows")) / most, 2) if most > 0 else 0.0,
                )
                for group in groups[:GROUPS_SHOWN]
            ]
            tables.append((name, COLOURS[name], counted(size.get("groups") or 0, "group"), lines))
    return tables


# Of each part of the certificate: what is said where nothing was found, what of each pair of splits where something
# was, what is said where nobody looked, and whether it is a fault.
CERTIFIED = (
    ("overlaps", "No group lies in two splits.", "Groups in {pair}: {shared}", "", "no"),
    ("shared_audio", "No audio file stands in two splits.", "Audio files in {pair}: {shared}", "", "open"),
    (
        "same_samples",
        "No samples are heard in two splits, under whatever file name.",
        "Clips with the same samples in {pair}: {shared}",
        "Samples were not compared between the splits, since no audio was decoded.",
        "open",
    ),
    (
        "neighbours",
        "No slices of one recording, as the file names tell them, lie in two splits.",
        "Recordings, as the file names tell them, with slices in {pair}: {shared}",
        "",
        "open",
    ),
    (
        "near_text",
        "No text stands in two splits, nor nearly.",
        "Texts that stand, or nearly stand, in {pair}: {shared}",
        "Texts were not compared between the splits.",
        "open",
    ),
)


def certified(split: Mapping[str, Any]) -> list[Check]:
    """The leakage certificate in words; what it does not speak of is left out."""
    checks = []
    for name, nothing, something, unknown, kind in CERTIFIED:
        if name not in split or (split[name] is None and not unknown):
            continue
        found = split[name]
        told = _pairs(found, something, kind) if isinstance(found, dict) else [Check("open", unknown)]
        checks += told or [Check("", nothing)]
    moves = _moves(split.get("moved_groups"))
    if moves:
        what = f"{counted(len(moves), 'group')} moved, since a split would have been empty"
        checks.append(Check("open", what, tuple(moves[:EXAMPLES_SHOWN])))
    return checks + _since(split.get("since_previous"))


def _since(earlier: Any) -> list[Check]:
    """What changed against the split that was named as the previous one."""
    if not isinstance(earlier, dict):
        return []
    moved, joined = earlier.get("groups_moved") or 0, earlier.get("groups_joined") or 0
    if not moved + joined:
        return [Check("", f"No group changed its split since {earlier.get('folder')}.")]
    what = f"{counted(moved, 'group')} changed the split and {joined:,} were joined since {earlier.get('folder')}"
    return [Check("open", what, tuple(_moves(earlier.get("moves"))[:EXAMPLES_SHOWN]))]


def _pairs(found: Mapping[str, Any], something: str, kind: str) -> list[Check]:
    """What two splits share, in a sentence for each pair that shares anything."""
    checks = []
    for name, value in found.items():
        if "+" not in name or not value:
            continue
        pair = f"both {name.replace('+', ' and ')}"
        if isinstance(value, list):
            text = something.format(shared=f"{len(value):,}", pair=pair)
            checks.append(Check(kind, text, tuple(map(str, value[:EXAMPLES_SHOWN]))))
            continue
        rows = {part: number(size) for part, size in (value.get("rows") or {}).items()}
        if any(size > 0 for size in rows.values()):
            text = something.format(shared=count(value.get("shared")), pair=pair)
            sizes = ", ".join(f"{counted(int(size), 'row')} of {part}" for part, size in rows.items())
            adjacent = number(value.get("adjacent_rows"))
            beside = f"; {counted(int(adjacent), 'row')} directly beside the other split's" if adjacent > 0 else ""
            examples = tuple(map(_example, (value.get("examples") or [])[:EXAMPLES_SHOWN]))
            checks.append(Check(kind, f"{text} ({sizes}{beside})", examples))
    return checks


def _example(value: Mapping[str, Any]) -> str:
    """`clips/a.wav: train line 3 (a-3), validation line 9 (a-9)`."""
    keys = [
        str(part) if name in ("audio", "stem") else f"{name} {part}"
        for name, part in value.items()
        if not isinstance(part, dict)
    ]
    rows = [
        f"{split} line {row.get('line')} ({row.get('id')})"
        + (
            f" \N{LEFT DOUBLE QUOTATION MARK}{shown(row['text'], EXAMPLE_LETTERS)}\N{RIGHT DOUBLE QUOTATION MARK}"
            if row.get("text")
            else ""
        )
        for split, row in value.items()
        if isinstance(row, dict)
    ]
    return ": ".join(part for part in (" ".join(keys), ", ".join(rows)) if part)


def _moves(moves: Any) -> list[str]:
    found = [move for move in moves or [] if isinstance(move, dict)]
    return [f"{move.get('group')}: from {move.get('from')} to {move.get('to')}" for move in found]
