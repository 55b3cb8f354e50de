"""Kill runs of the tiny model at random moments, resume each, and compare with runs that nobody killed.

    python -m benchmarks.torture FOLDER [--runs 100] [--seconds S] [--seed N] [--results FILE]

What is done is remembered in FOLDER, so that a second call goes on; --seconds ends a call early (exit code 3). When all
runs are done, the table is written to --results (default: benchmarks/results/torture.md). Exit code 1 if any differed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.killed_run import (
    EVERY,
    KINDS,
    STATE_EVERY,
    STEPS,
    Outcome,
    Whole,
    killed_run,
    prepare_imports,
    whole_run,
)
from benchmarks.machine import machine

RESULTS = Path(__file__).parent / "results" / "torture.md"


def main(arguments: list[str]) -> int:
    """Run what is still to be run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    folder: Path = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "VOXTRAIN_CACHE": str(folder / "cache"), "WANDB_MODE": "disabled"}
    os.chdir(folder)
    until = time.monotonic() + given.seconds
    prepare_imports()
    outcomes = _run_all(folder, given.runs, given.seed, until)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in wrong:
        print(f"{outcome.kind}, killed after step {outcome.steps_at_kill}: {'; '.join(outcome.wrong)}", file=sys.stderr)
    print(f"{len(outcomes)} of {given.runs} runs killed and resumed, {len(wrong)} of them not as they must be")
    if len(outcomes) < given.runs:
        return 1 if wrong else 3
    given.results.write_text(_told(outcomes, given.seed), encoding="utf-8")
    return 1 if wrong else 0


def _run_all(folder: Path, runs: int, seed: int, until: float) -> list[Outcome]:
    record = folder / "outcomes.jsonl"
    outcomes = [Outcome(**json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []
    whole: dict[str, Whole] = {}
    for number in range(len(outcomes), runs):
        if time.monotonic() > until:
            break
        kind, place = KINDS[number % len(KINDS)], folder / "runs" / str(number)
        if kind.name not in whole:
            whole[kind.name] = _known_whole(folder, number % len(KINDS))
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        outcome = killed_run(kind, place, whole[kind.name], random.Random(f"{seed} {number}"))
        outcomes.append(outcome)
        with record.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(outcome)) + "\n")
        if not outcome.wrong:
            shutil.rmtree(place)
    return outcomes


def _known_whole(folder: Path, number: int) -> Whole:
    place = folder / f"whole_{number}"
    known = place / "whole.json"
    if not known.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        known.write_text(json.dumps(asdict(whole_run(KINDS[number], place))))
    return Whole(**json.loads(known.read_text()))


def _told(outcomes: list[Outcome], seed: int) -> str:
    on = machine()
    day = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# Runs killed by SIGKILL and resumed",
        "",
        f"`python -m benchmarks.torture FOLDER --runs {len(outcomes)} --seed {seed}`: the tiny model, {STEPS} steps, a "
        f"numbered checkpoint every {EVERY} and a state every {STATE_EVERY} of them.",
        f"Machine: {on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['system']}, "
        f"Python {platform.python_version()}, {day}.",
        "",
        "Each run was killed at a random moment after its first state, looked at, and resumed to its end. Then the",
        "full-precision weights, the optimizer's state, every numbered checkpoint and every logged loss were compared,",
        "bit for bit, with a run that nobody killed; so were the step that it went on from, folders that stood before",
        "(same inode, same time), the link `latest`, and whether anything half-written was left.",
        "",
        "| what was trained and how it was saved | killed | inside a save | after step (median) | as they must be |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [_row(kind.name, [outcome for outcome in outcomes if outcome.kind == kind.name]) for kind in KINDS]
    lines.append(_row("all", outcomes))
    return "\n".join(lines) + "\n"


def _row(name: str, outcomes: list[Outcome]) -> str:
    steps = sorted(outcome.steps_at_kill for outcome in outcomes)
    span = f"{steps[0]} to {steps[-1]} ({steps[len(steps) // 2]})" if steps else ""
    inside, right = sum(o.inside_a_save for o in outcomes), sum(not o.wrong for o in outcomes)
    return f"| {name} | {len(outcomes)} | {inside} | {span} | {right} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
