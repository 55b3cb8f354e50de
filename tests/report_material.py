"""A run folder as the programs of a run leave it, made in milliseconds: what the tests of report/ read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxtrain.durable import write_json, write_jsonl, write_table, write_whole
from voxtrain.run_folder import DataFolder, RunFolder

STEPS, EVERY, ROWS_PER_STEP = 240, 40, 8
RULES = {"empty_text": 37, "too_short": 3, "boilerplate": 1, "clipped": 0}
KEPT = 79
CONFIG = """
name: demo
seed: 1
resume: null
train: {max_steps: 240, max_rows: null, batch_size: 2, grad_accum: 4, max_grad_norm: 1.0}
model: {_target_: voxtrain.model.tiny.TinyModel, path: null, seed: 0}
tuning: {_target_: voxtrain.model.tuning.FullTuning}
optimizer: {_target_: voxtrain.optim.adamw.AdamW, lr: 1e-3, betas: [0.9, 0.95]}
data: {manifest: null, group_by: parent, cache_dir: '~/.cache/voxtrain'}
memory: {card: null, weights: fp32}
validation: {when: after_training, draws: 8, rule: lowest}
"""


def held_out(step: int) -> tuple[float, float]:
    """loss/diff and loss/stop of a checkpoint: diff falls, stop falls and rises again, like the published run's."""
    diff = 0.80 + 0.16 * math.exp(-step / 70)
    stop = 0.05 + 0.12 * math.exp(-step / 30) + 0.09 * (step / STEPS) ** 2
    return round(diff, 6), round(stop, 6)


def total(step: int) -> float:
    return round(sum(held_out(step)), 6)


def write_saves(run: RunFolder, steps: int) -> None:
    """A save every 40 steps; the first waited for nothing, the last stood in the way."""
    stalls = {0: 0.02, steps: 0.61}
    rows = [
        {
            "step": step,
            "saved": f"checkpoint {step}",
            "gib": 0.03,
            "seconds": 0.6,
            "stalled_seconds": stalls.get(step, 0.05),
        }
        for step in range(0, steps + 1, EVERY)
    ]
    write_table(run.saves, rows)


def fake_run(
    root: Path, *, steps: int = STEPS, overrides: Sequence[str] = ("+recipe=demo",), bend: float = 0.0
) -> RunFolder:
    """A complete run of `steps` steps. bend: added to every held-out loss/diff but the base's."""
    run = RunFolder(root)
    write_whole(run.config, CONFIG)
    write_environment(run)
    write_data(DataFolder(run.data))
    write_metrics(run, steps)
    write_saves(run, steps)
    checkpoints = list(range(0, steps + 1, EVERY))
    for step in checkpoints:
        (run.checkpoint(step)).mkdir(parents=True)
    write_evaluation(run, checkpoints, bend)
    write_memory(run)
    write_record(run, steps, overrides)
    return run


def write_record(run: RunFolder, steps: int, overrides: Sequence[str], **changed: Any) -> None:
    last = {"last_logged_step": steps, "last_checkpoint": steps, "last_state": steps, "complete": True}
    record = {
        "status": "finished",
        "exit_code": 0,
        "steps": steps,
        "total_steps": steps,
        "resumed_from_step": None,
        "skipped": [],
        "overrides": list(overrides),
        "started": "2026-05-04T10:11:12+02:00",
        "ended": "2026-05-04T10:12:34+02:00",
        "train_seconds": 71.25,
        "message": "",
        "pid": 4711,
        "evidence": last,
    }
    write_json(run.run, record | changed)


def write_environment(run: RunFolder) -> None:
    packages = {"voxtrain": "0.1.0", "torch": "2.11.0", "wandb": None}
    write_json(run.environment, {"python": "3.11.9", "cpu_count": 2, "gpus": [], "packages": packages})


def write_data(folder: DataFolder) -> None:
    splits = {
        "train": {"groups": 9, "rows": 61, "seconds": 190.5},
        "validation": {"groups": 2, "rows": 11, "seconds": 33.25},
        "test": {"groups": 1, "rows": 7, "seconds": 20.0},
    }
    audit = {
        "manifest": "/home/me/speech/manifest.jsonl",
        "rows_in": KEPT + sum(RULES.values()),
        "rows_kept": KEPT,
        "rejects_by_rule": RULES,
        "seconds_in": 372.4,
        "seconds_kept": 243.75,
        "seconds_rejected_by_rule": {"empty_text": 125.0, "too_short": 0.15, "boilerplate": 3.5, "clipped": 0.0},
        "examples": {
            "empty_text": {"line": 4, "id": "a", "value": ""},
            "too_short": {"line": 17, "id": "b", "value": 0.0512345},
            "boilerplate": {"line": 90, "id": "c", "value": "please subscribe <b>now</b>"},
        },
        "contamination": {"reject_share": 0.3417, "rows_per_step": 8, "steps_touched": 0.9647},
        "splits": splits,
        "warnings": ["validation has 2 groups: under 5 there are no confidence intervals"],
    }
    write_json(folder.audit, audit)
    write_json(folder.split, {"group_by": "parent", "splits": splits, "overlaps": {"train+validation": []}})
    for name, size in splits.items():
        write_jsonl(folder.rows(name), [{"id": f"{name}_{n}"} for n in range(size["rows"])])


def write_metrics(run: RunFolder, steps: int) -> None:
    noise = np.random.default_rng(3)
    rows = []
    for step in range(1, steps + 1):
        diff, stop = held_out(step)
        diff, stop = diff * noise.normal(1, 0.05), stop * noise.lognormal(0, 0.5)
        rows.append(
            {
                "step": step,
                "train/loss/total": diff + stop,
                "train/loss/diff": diff,
                "train/loss/stop": stop,
                "train/grad_norm": noise.lognormal(0.3, 0.6) * (12 if step == 90 else 1),
                "train/lr": 1e-3 * min(step / 20, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
                "train/rows": ROWS_PER_STEP * step,
                "train/micro_batches": 4,
                "train/padding_share": 0.0625,
                "train/audio_seconds": 25.0 * step,
                "train/seconds": 0.28,
                "train/peak_gib": 1.9,
                "train/skipped": 0,
            }
        )
    write_table(run.metrics, rows)


def write_evaluation(run: RunFolder, checkpoints: Sequence[int], bend: float, *, intervals: bool = False) -> None:
    table = []
    for step in checkpoints:
        diff, stop = held_out(step)
        diff += bend if step else 0.0
        ends = (diff + stop - 0.02, diff + stop + 0.015) if intervals else ("", "")
        losses = {"loss/total": diff + stop, "loss/diff": diff, "loss/stop": stop}
        intervals_of = {"loss/total/low": ends[0], "loss/total/high": ends[1]}
        chance = 0.125 if intervals and step else ""
        table.append({"step": step, **losses, **intervals_of, "probability_best": chance})
    write_table(run.evaluated_checkpoints, table)
    order = sorted((row for row in table if row["step"]), key=lambda row: row["loss/total"])
    best, runner_up = order[0]["step"], order[1]["step"]
    ends = {str(step): {"difference": 0.01, "low": -0.01, "high": 0.03} for step in checkpoints if step != best}
    selection = {
        "selected_step": best,
        "tie_set": sorted([best, runner_up]) if intervals else sorted(step for step in checkpoints if step),
        "intervals": ends if intervals else None,
        "rule": "lowest",
        "runner_up": runner_up,
        "final_is_best": best == checkpoints[-1],
        "beats_base": True,
        "stop_weight_ranges": [
            {"step": checkpoints[-1], "from": 0.0, "to": 0.3125},
            {"step": best, "from": 0.3125, "to": 1.75},
            {"step": checkpoints[1], "from": 1.75, "to": None},
        ],
        "warnings": [],
        "reason": f"Step {best} has the lowest held-out loss/total of the trained checkpoints. The runner-up is close.",
    }
    write_json(run.selection, selection)
    names = ("validate", "listen", "select")
    stages = [{"name": name, "command": [], "exit_code": 0, "seconds": 12.5} for name in names]
    write_json(run.post_hoc, {"exit_code": 1, "steps": stages})  # as it is while the report itself is written
    write_whole(run.listening_page, "<!doctype html><title>listening</title>")


def write_memory(run: RunFolder) -> None:
    at_peak = {"weights": 0.012, "gradients": 0.0, "optimizer_on_card": 0.024, "activations": 1.3, "other": 0.362}
    predicted = {
        "peak_gib": 1.698,
        "card_gib": None,
        "fits": True,
        "phase": "backward",
        "classes": at_peak,
        "optimizer_off_card": 0.0,
        "phases": {"backward": at_peak, "step": at_peak | {"gradients": 0.012, "activations": 0.0}},
    }
    measured = {
        "peak_gib": 1.93,
        "grown_gib": 0.7,
        "classes": {"weights": 0.012, "gradients": 0.0125, "optimizer_on_card": 0.024},
        "optimizer_off_card": 0.0,
        "device": "cpu",
    }
    phases = {"first_forward": {"predicted": 1.25, "measured": 1.31, "error": -0.0458}}
    receipt = {"predicted": predicted, "measured": measured, "error": {"weights": 0.0, "gradients": -0.04}}
    write_json(run.memory, {**receipt, "phases": phases})
