"""The sections on memory, settings, machine, and whether the run is complete."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from voxtrain.report import words
from voxtrain.report.evidence import Evidence, Record, flat, number, whole


def memory(evidence: Evidence) -> dict[str, Any] | None:
    """Predicted against measured, the peak first, then by class; None where there is no memory.json."""
    if evidence.memory is None:
        return None
    predicted, measured = _part(evidence.memory, "predicted"), _part(evidence.memory, "measured")
    plan, told = number(predicted.get("peak_gib")), _part(evidence.memory, "error")
    lines = [_line("peak", plan, plan, evidence.peak_gib, number(told.get("peak_gib")), plan)]
    seen, phases = _part(measured, "classes"), _part(predicted, "phases")
    for name, value in _part(predicted, "classes").items():
        at_peak, found = number(value), number(seen.get(name))
        most = max(
            [number(phase.get(name)) for phase in phases.values() if isinstance(phase, Mapping)], default=at_peak
        )
        if most or (math.isfinite(found) and found):
            lines.append(_line(str(name).replace("_", " "), at_peak, most, found, number(told.get(name)), plan))
    off_card, found = number(predicted.get("optimizer_off_card")), number(measured.get("optimizer_off_card"))
    if off_card > 0 or found > 0:
        lines.append(_line("optimizer, off the card", math.nan, off_card, found, math.nan, plan))
    return {"lead": _memory_lead(predicted, measured), "lines": lines, "phases": list(_phases(evidence.memory))}


def _phases(memory: Record) -> Iterator[dict[str, str]]:
    """Each phase of the run, predicted and measured in one account (memory/phases.py)."""
    for name, told in _part(memory, "phases").items():
        if isinstance(told, Mapping) and math.isfinite(number(told.get("measured"))):
            yield {
                "name": str(name).replace("_", " "),
                "predicted": words.gib(number(told.get("predicted"))),
                "measured": words.gib(number(told.get("measured"))),
                "error": words.error(number(told.get("error"))),
            }


def _memory_lead(predicted: Record, measured: Record) -> str:
    parts = []
    if predicted.get("phase"):
        parts.append(f"The peak was predicted in the phase “{str(predicted['phase']).replace('_', ' ')}”.")
    card, fits = number(predicted.get("card_gib")), predicted.get("fits")
    if math.isfinite(card):
        parts.append(f"The card has {words.gib(card)}: the run {'fits' if fits else 'does not fit'}.")
    whole_card = number(measured.get("card_peak_gib"))
    if math.isfinite(whole_card):
        parts.append(f"The whole card held {words.gib(whole_card)} at most, whoever used it.")
    if measured.get("device") == "cpu":
        grown = words.gib(number(measured.get("grown_gib")))
        parts.append(
            "Measured on a CPU, the peak is the whole process with Python and its libraries, which the prediction "
            f"leaves out; it grew by {grown} in training."
        )
    return " ".join(parts)


def _line(name: str, at_peak: float, most: float, measured: float, error: float, scale: float) -> dict[str, Any]:
    return {
        "name": name,
        "at_peak": words.gib(at_peak),
        "most": words.gib(most),
        "measured": words.gib(measured),
        "error": words.error(error),
        "width": round(100 * at_peak / scale, 2) if scale > 0 and math.isfinite(at_peak) else 0,
        "sum": name == "peak",
    }


def settings(evidence: Evidence) -> dict[str, Any] | None:
    """What was asked for, and every setting; None where neither is there."""
    overrides = (evidence.record or {}).get("overrides")
    if evidence.config is None and overrides is None:
        return None
    asked = [str(override) for override in overrides] if isinstance(overrides, list) else []
    plain = {} if evidence.config is None else flat(evidence.config)
    return {
        "lead": "Asked for:" if asked else "Nothing but defaults was asked for.",
        "overrides": asked,
        "all": [(key, "null" if value is None else str(value)) for key, value in plain.items()],
    }


def environment(evidence: Evidence) -> list[tuple[str, str]]:
    """Machine and packages, one line each; empty where the file is not there."""
    return [(key, str(value)) for key, value in flat(evidence.environment or {}).items() if value is not None]


def checks(evidence: Evidence) -> list[dict[str, str]]:
    """The evidence of completion, one sentence each. kind: empty (holds), `no`, or `open` (not known yet)."""
    return [{"kind": kind, "text": text} for kind, text in _checks(evidence)]


def _checks(evidence: Evidence) -> Iterator[tuple[str, str]]:
    record = evidence.record or {}
    if not record:
        yield "open", "run.json is not there yet."
    else:
        code, status = record.get("exit_code"), record.get("status")
        kind = "open" if code is None else "" if code == 0 else "no"
        yield kind, f"The run's status: {status}" + ("." if code is None else f", exit code {code}.")
    found = _part(record, "evidence")
    if found:
        kind = "" if found.get("complete") else "no"
        told = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in found.items() if key != "complete")
        yield kind, f"{'These agree' if not kind else 'These should agree'}: {told}."
    yield from _log_check(evidence)
    yield from _judged_check(evidence)
    for stage in (evidence.post_hoc or {}).get("steps") or []:
        code, seconds = stage.get("exit_code"), words.span(number(stage.get("seconds")))
        yield (
            "no" if code else "",
            f"After training, “{stage.get('name')}” ended with exit code {code} after {seconds}.",
        )
    for name, there in (
        ("A selected checkpoint", evidence.selection is not None),
        ("The listening page", evidence.run.listening_page.is_file()),
    ):
        yield ("", f"{name} is there.") if there else ("open", f"{name} is not there yet.")


def _log_check(evidence: Evidence) -> Iterator[tuple[str, str]]:
    steps = [whole(row["step"]) for row in evidence.steps]
    gapless = steps == list(range(1, len(steps) + 1))
    if steps:
        yield (
            "" if gapless else "no",
            f"metrics.csv holds {'every' if gapless else 'NOT every'} step once, 1 to {steps[-1]}.",
        )


def _judged_check(evidence: Evidence) -> Iterator[tuple[str, str]]:
    written = set(evidence.run.checkpoint_steps())
    judged = {whole(row["step"]) for row in evidence.checkpoints}
    if written:
        left = len(written - judged)
        kind = "" if not left else "open"
        yield kind, f"{len(written & judged)} of {len(written)} numbered checkpoints are judged."


def _part(record: Record, key: str) -> Record:
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}
