"""The comparison of two audits for a terminal: four small tables and the warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from voxtrain.manifest.page.words import MINUS, NOTHING, brief, count, counted, figure, harmless, number, share, shown

SHOWN_LETTERS, SETTING_LETTERS = 60, 24
EXAMPLE = "such as"


def print_diff(found: Mapping[str, Any]) -> None:
    """Print what `diff` found."""
    console = Console(highlight=False)
    for name in ("a", "b"):
        side = found[name]
        console.print(
            f"{name.upper()}  {harmless(side['path'])}  ({harmless(side['manifest'])})", markup=False, soft_wrap=True
        )
    tables = (_ledger(found), _changes(found), _steps(found), _medians(found), _settings(found))
    for table in tables:
        if table is not None:
            console.print()
            console.print(table)
    sentences = _splits(found["splits"])
    if sentences:
        console.print()
    for sentence in sentences:
        console.print(harmless(sentence), markup=False)
    for warning in found["warnings"]:
        console.print(f"\nWarning: {harmless(warning)}", markup=False, style="yellow")


def _table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table | None:
    """A table whose first column is text and whose others are numbers; None without lines."""
    if not lines:
        return None
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", no_wrap=name != EXAMPLE)
    for cells in lines:
        table.add_row(*(escape(harmless(cell)) for cell in cells))
    return table


def _ledger(found: Mapping[str, Any]) -> Table | None:
    """Rows and seconds of both, and the rejects of each rule, by id too where that is known."""
    a, b = found["a"], found["b"]
    followed = any(line["both"] is not None for line in found["rules"])
    head = ["", "A", "B", "change", *(("only A", "both", "only B") if followed else ())]
    gap = ("", "", "") if followed else ()
    lines = [
        ("rows in", count(a["rows_in"]), count(b["rows_in"]), _signed(b["rows_in"], a["rows_in"]), *gap),
        ("kept", count(a["rows_kept"]), count(b["rows_kept"]), _signed(b["rows_kept"], a["rows_kept"]), *gap),
        ("audio in", brief(a["seconds_in"]), brief(b["seconds_in"]), _longer(b["seconds_in"], a["seconds_in"]), *gap),
        (
            *("audio kept", brief(a["seconds_kept"]), brief(b["seconds_kept"])),
            *(_longer(b["seconds_kept"], a["seconds_kept"]), *gap),
        ),
        ("rejected", share(a["reject_share"]), share(b["reject_share"]), "", *gap),
    ]
    for line in found["rules"]:
        met = tuple(count(line[name]) for name in ("only_a", "both", "only_b")) if followed else ()
        change = _signed(line["rows_b"], line["rows_a"])
        lines.append((f"  {line['rule']}", count(line["rows_a"]), count(line["rows_b"]), change, *met))
    return _table("Ledger", head, lines)


def _changes(found: Mapping[str, Any]) -> Table | None:
    """The rows that only one of the two keeps, and what the other has against them."""
    rows = found["rows"]
    if rows is None:
        return None
    lines = [("kept by both", count(rows["kept_by_both"]["rows"]), brief(rows["kept_by_both"]["seconds"]), "")]
    for name, words, other in (("went", "kept by A alone", "B"), ("came", "kept by B alone", "A")):
        change = rows[name]
        lines.append((words, count(change["rows"]), brief(change["seconds"]), ""))
        absent = change["not_in_the_manifest"]
        if absent["rows"]:
            lines.append((f"  not in {other}'s manifest", count(absent["rows"]), brief(absent["seconds"]), ""))
        for rule, size in change["rejected_by_rule"].items():
            example = next(iter(change["examples"].get(rule, [])), None)
            told = "" if example is None else f"line {example['line']}: {shown(example['text'], SHOWN_LETTERS)}"
            lines.append((f"  {rule} in {other}", count(size["rows"]), brief(size["seconds"]), told))
    table = _table("What went and what came", ("", "rows", "audio", EXAMPLE), lines)
    if table is not None:
        table.columns[3].justify = "left"
    return table


def _steps(found: Mapping[str, Any]) -> Table | None:
    """The share of steps that would meet a bad row."""
    shares, steps = found["contamination"]["shares"], found["contamination"]["steps_touched"]
    words = {
        "a": "A, its rejects left in",
        "b": "B, its rejects left in",
        "kept_by_a_rejected_by_b": "A as it is, judged by B's rules",
        "kept_by_b_rejected_by_a": "B as it is, judged by A's rules",
    }
    head = ["steps that meet a bad row", "bad rows", *(f"n = {step['rows_per_step']}" for step in steps)]
    lines = [
        (text, share(shares[name]), *(share(step[name]) for step in steps))
        for name, text in words.items()
        if shares[name] is not None
    ]
    return _table("Contamination, by rows in a step", head, lines)


def _medians(found: Mapping[str, Any]) -> Table | None:
    lines = [
        (name, figure(median["a"]), figure(median["b"]), _sign(median["shift"], figure))
        for name, median in found["medians"].items()
    ]
    return _table("Medians of the kept rows", ("", "A", "B", "shift"), lines)


def _settings(found: Mapping[str, Any]) -> Table | None:
    lines = [(line["key"], _setting(line["a"]), _setting(line["b"])) for line in found["settings"]]
    return _table("Settings that differ", ("", "A", "B"), lines)


def _setting(value: Any) -> str:
    if isinstance(value, list | dict) and len(str(value)) > SETTING_LETTERS:
        return f"{len(value)} of them"
    return shown(value, SETTING_LETTERS)


def _splits(splits: Mapping[str, Any]) -> list[str]:
    """The groups in sentences."""
    groups = splits["groups"]
    if groups is None:
        return []
    told = [f"{counted(groups['same_split'], 'group')} in the same split, {groups['moved']:,} in another"]
    told[0] += f"; {groups['only_in_a']:,} in A alone, {groups['only_in_b']:,} in B alone."
    told += [f"  {move['group']}: from {move['from']} to {move['to']}" for move in groups["moves"]]
    if groups["moved"] > len(groups["moves"]):
        told.append(f"  and {groups['moved'] - len(groups['moves']):,} more")
    return told


def _signed(b: Any, a: Any) -> str:
    return _sign(number(b) - number(a), count)


def _longer(b: Any, a: Any) -> str:
    return _sign(number(b) - number(a), brief)


def _sign(change: float, words: Any) -> str:
    if math.isnan(change):
        return NOTHING
    if not change:
        return "0"
    return f"{'+' if change > 0 else MINUS}{words(abs(change))}"
