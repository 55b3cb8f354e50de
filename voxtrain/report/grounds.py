"""The section on what stands behind the choice: how sure it is, what would change it, and where the loss lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from voxtrain.report import words
from voxtrain.report.evidence import Evidence, Record, number, whole

Parts = dict[str, Any]

LENGTH_NAMES = ("shortest", "middle", "longest")


def grounds(evidence: Evidence) -> dict[str, Any] | None:
    """What selection.json knows beyond the choice; None where nothing is selected."""
    selection = evidence.selection
    if selection is None or evidence.selected_step is None:
        return None
    return {
        "facts": list(_facts(evidence, selection)),
        "would_change": [_sentence(text) for text in _list(selection, "would_change")],
        "known": "would_change" in selection,
        "parts": [part for part in (_by_flow_time(evidence, selection), _by_length(evidence, selection)) if part],
    }


def _facts(evidence: Evidence, selection: Record) -> Iterator[tuple[str, str]]:
    """Name and sentence, those that are known."""
    if evidence.ties:
        best = whole(selection.get("best_step")) or evidence.selected_step
        others = [step for step in evidence.ties if step != best]
        text = f"This split cannot tell step {words.listed(others)} from it" if others else "No other ties with it"
        out = _out_though_its_interval_holds_zero(evidence, selection)
        why = (
            f" Out, although the interval against the selected holds zero, because another is lower more surely: "
            f"step {words.listed(out)}."
            if out
            else ""
        )
        yield "Lowest loss/total", f"Step {best:,}. {text}.{why}"
    shown = number(selection.get("detectable_difference"))
    if math.isfinite(shown):
        power, groups = number(selection.get("power")), number(selection.get("groups"))
        yield (
            "Detectable difference",
            f"{words.loss(shown)}: held-out rows of {words.count(groups)} recordings show a true difference of that "
            f"size between two checkpoints {power:.0%} of the time; of smaller ones, less often.".replace("%", " %"),
        )
    pareto = [step for step in map(whole, _list(selection, "pareto_set")) if step is not None]
    if pareto:
        trained = [row for row in evidence.checkpoints if whole(row.get("step"))]
        rest = " Each of the rest has one of these that is no higher in either." if len(pareto) < len(trained) else ""
        text = (
            f"Step {pareto[0]:,} alone: no other is lower in either loss."
            if len(pareto) == 1
            else f"Steps {words.listed(pareto)}: going from one to another lowers one of the two losses and raises "
            f"the other.{rest}"
        )
        yield "Best of diff and stop", text
    gauge = stop_in_training(evidence).get(evidence.selected_step or 0, math.nan)
    held_out = number((evidence.judged(evidence.selected_step) or {}).get("loss/stop"))
    if math.isfinite(gauge) and math.isfinite(held_out):
        times = f", {held_out / gauge:,.3g} times as high" if held_out > gauge > 0 else ""
        yield (
            "Stop head",
            f"loss/stop at step {evidence.selected_step:,} is {gauge:.2g} in training and {words.loss(held_out)} on "
            f"held-out rows{times}. Where the two part, it learns its clips by heart, not how clips end.",
        )


def _out_though_its_interval_holds_zero(evidence: Evidence, selection: Record) -> list[int]:
    """Trained steps outside the tie set that the selected one alone would not have put there."""
    intervals = selection.get("intervals")
    found = []
    for name, ends in intervals.items() if isinstance(intervals, Mapping) else ():
        step = whole(name)
        low, high = (number(ends.get(end)) if isinstance(ends, Mapping) else math.nan for end in ("low", "high"))
        if step and step not in evidence.ties and low <= 0 <= high:
            found.append(step)
    return sorted(found)


def stop_in_training(evidence: Evidence) -> dict[int, float]:
    """loss/stop of the training steps before each checkpoint, where known."""
    entries = [entry for entry in _list(evidence.selection or {}, "stop_gauge") if isinstance(entry, Mapping)]
    found = {whole(entry.get("step")): number(entry.get("train")) for entry in entries}
    return {step: value for step, value in found.items() if step is not None and math.isfinite(value)}


def _by_flow_time(evidence: Evidence, selection: Record) -> Parts | None:
    def name(part: Record) -> str:
        return f"{number(part.get('from')):.1f} to {number(part.get('to')):.1f}"

    note = "flow time from 0 (speech) to 1 (noise)"
    return _table(evidence, _list(selection, "by_flow_time"), "loss/diff", note, lambda part, _: name(part))


def _by_length(evidence: Evidence, selection: Record) -> Parts | None:
    parts = _list(selection, "by_length")

    def name(part: Record, place: int) -> str:
        ends = f"{number(part.get('from_s')):.1f} to {number(part.get('to_s')):.1f} s"
        return f"{LENGTH_NAMES[place]}, {ends}" if len(parts) == len(LENGTH_NAMES) else ends

    return _table(evidence, parts, "loss/total", "thirds of the held-out rows by length", name)


def _table(
    evidence: Evidence, parts: list[Any], loss: str, note: str, name: Callable[[Record, int], str]
) -> Parts | None:
    """A line for each part and a column for each checkpoint that the choice is about; None where nothing is known."""
    known = [part for part in parts if isinstance(part, Mapping) and isinstance(part.get(loss), Mapping)]
    if not known:
        return None
    columns = _named(evidence)
    lines = [
        {"name": name(part, place), "cells": [words.loss(number(part[loss].get(str(step)))) for step, _ in columns]}
        for place, part in enumerate(known)
    ]
    return {
        "title": f"Held-out {loss} in parts",
        "note": note,
        "columns": [text for _, text in columns],
        "lines": lines,
    }


def _named(evidence: Evidence) -> list[tuple[int, str]]:
    """The checkpoints that the choice is about, ascending, with what they are."""
    runner_up = whole((evidence.selection or {}).get("runner_up"))
    called = [
        (0, "base"),
        (evidence.selected_step, "selected"),
        (runner_up, "runner-up"),
        (evidence.final_step, "last"),
    ]
    found: dict[int, list[str]] = {}
    for step, name in called:
        if step is not None and evidence.judged(step) is not None:
            found.setdefault(step, []).append(name)
    return [(step, f"{', '.join(names)} ({step:,})" if step else "base") for step, names in sorted(found.items())]


def _list(record: Record, key: str) -> list[Any]:
    found = record.get(key)
    return found if isinstance(found, list) else []


def _sentence(text: object) -> str:
    told = str(text)
    return f"{told[:1].upper()}{told[1:]}." if not told.startswith("validation.") else f"{told}."
