"""The top of a run's page: what became of it, what to ship, the figures that matter, what to know."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from voxtrain.report import words
from voxtrain.report.evidence import Evidence, Record, number, whole
from voxtrain.report.page import Chip
from voxtrain.run_folder import DataFolder

STATUS_KINDS = {"finished": "good", "running": "soft", "stopped": "warn"}
NAMED_STOPS = 6
"""Up to as many checkpoints all have their step written on the rail; beyond it the ends and the selected."""


def head(evidence: Evidence) -> dict[str, Any]:
    """What the template's head needs."""
    run, selected = evidence.run, evidence.selected_step
    stops = list(_rail(evidence))
    return {
        "chips": list(_chips(evidence)),
        "verdict": words.verdict(evidence),
        "rail": stops if len(stops) > 1 else [],
        "rail_words": f"Checkpoints on a line from the first to the last step; selected: {selected}",
        "ship": "" if selected is None else str(run.checkpoint(selected).relative_to(run.root)),
        "listening": str(run.listening_page.relative_to(run.root)) if run.listening_page.is_file() else "",
        "failure": _failure(evidence),
        "tiles": list(_tiles(evidence)),
        "warnings": list(_warnings(evidence)),
    }


def _chips(evidence: Evidence) -> Iterator[Chip]:
    record = evidence.record or {}
    status = str(record.get("status") or "no record")
    yield Chip(status, STATUS_KINDS.get(status, "bad" if record else ""))
    if record.get("started"):
        yield Chip(str(record["started"])[:16].replace("T", " "), "")
    target = str(evidence.setting("tuning._target_") or "")
    if target:
        rank = evidence.setting("tuning.rank")
        yield Chip("full SFT" if rank is None else f"LoRA, rank {rank}", "")
    for key in ("model.path", "memory.card"):
        value = evidence.setting(key)
        if value:
            yield Chip(PurePath(str(value)).name, "")
    gpus = (evidence.environment or {}).get("gpus")
    for gpu in gpus if isinstance(gpus, list) else []:
        yield Chip(str(gpu.get("name")) if isinstance(gpu, dict) else str(gpu), "")


def _rail(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """The checkpoints on a line, each at its share of the way."""
    steps = sorted({step for row in evidence.checkpoints if (step := whole(row["step"])) is not None})
    steps = steps or evidence.run.checkpoint_steps()
    for step in steps:
        row = evidence.judged(step) or {}
        kinds = [
            name
            for name, applies in (
                ("base", step == 0),
                ("tied", step in evidence.ties and len(evidence.ties) > 1),
                ("start", step == steps[0]),
                ("end", step == steps[-1]),
                ("selected", step == evidence.selected_step),
            )
            if applies
        ]
        named = len(steps) <= NAMED_STOPS or {"start", "end", "selected"} & set(kinds)
        yield {
            "left": round(100 * step / max(steps[-1], 1), 2),
            "kinds": " ".join(kinds),
            "title": f"step {step:,}: loss/total {words.loss(number(row.get('loss/total')))}",
            "name": ("base" if step == 0 else f"step {step:,}") if named else "",
        }


def _failure(evidence: Evidence) -> dict[str, str] | None:
    record = evidence.record or {}
    message = str(record.get("message") or "")
    if not message:
        return None
    return {"title": f"{record.get('status')}, exit code {record.get('exit_code')}".capitalize(), "message": message}


def _tiles(evidence: Evidence) -> Iterator[dict[str, str]]:
    def tile(name: str, value: str, note: str) -> dict[str, str]:
        return {"name": name, "value": value, "note": note}

    record = evidence.record or {}
    last = evidence.steps[-1] if evidence.steps else {}
    steps, total = number(last.get("step")), number(record.get("total_steps"))
    yield tile("Steps", words.count(steps), f"of {words.count(total)}" if math.isfinite(total) else "")
    heard = number(last.get("train/audio_seconds"))
    yield tile("Rows learnt from", words.count(number(last.get("train/rows"))), f"{words.span(heard)} of speech")
    seconds = number(record.get("train_seconds"))
    each = sum(x for x in evidence.column("train/seconds") if math.isfinite(x)) / max(len(evidence.steps), 1)
    yield tile("Training time", words.span(seconds), f"{each:.3g} s a step" if evidence.steps else "")
    predicted = (evidence.memory or {}).get("predicted")
    plan = number(predicted.get("peak_gib")) if isinstance(predicted, dict) else math.nan
    measured = (evidence.memory or {}).get("measured")
    on_cpu = isinstance(measured, dict) and measured.get("device") == "cpu"
    note = "of the whole process" if on_cpu else f"predicted {words.gib(plan)}" if math.isfinite(plan) else ""
    yield tile("Peak memory", words.gib(evidence.peak_gib), note)
    yield from _loss_tiles(evidence)


def _loss_tiles(evidence: Evidence) -> Iterator[dict[str, str]]:
    def total(step: int | None) -> float:
        return number((evidence.judged(step) or {}).get("loss/total"))

    base, selected, final = total(0), total(evidence.selected_step), total(evidence.final_step)
    note = f"base {words.loss(base)}, {words.signed(selected - base)}" if math.isfinite(base) else "not judged yet"
    yield {"name": "Held-out loss", "value": words.loss(selected), "note": note}
    if math.isfinite(final):
        same = evidence.final_step == evidence.selected_step
        note = f"step {evidence.final_step:,}" + ("" if same else f", {words.signed(final - selected)}")
        yield {"name": "Last checkpoint", "value": words.loss(final), "note": note}


def _warnings(evidence: Evidence) -> Iterator[str]:
    """What to know: each file's own warnings, what could not be read, what the files say between them."""
    yield from evidence.unreadable
    sources = (evidence.audit, evidence.split, evidence.memory, evidence.selection, evidence.post_hoc)
    told = [text for source in sources for text in _own_warnings(source)]
    yield from dict.fromkeys(told)
    skipped = (evidence.record or {}).get("skipped") or []
    if skipped:
        which = words.listed(skipped[:10])
        yield f"{len(skipped)} steps were skipped, since a loss or the gradient was not finite: {which}"
    for stage in (evidence.post_hoc or {}).get("steps") or []:
        if stage.get("exit_code"):
            log = evidence.run.post_hoc_log.relative_to(evidence.run.root)
            yield f"after training, “{stage.get('name')}” ended with exit code {stage['exit_code']}; see {log}"
    if evidence.config and not DataFolder(evidence.run.data).audit.is_file():
        yield "the data of this run was never audited, or its audit was removed"


def _own_warnings(source: Record | None) -> list[str]:
    found = (source or {}).get("warnings")
    return [str(text) for text in found] if isinstance(found, list) else []
