"""Each memory stack as a real run on a card of its size: peaks beside the plan, seconds a step, and paging on resume.

    python -m benchmarks.stacks [--steps N] [--rows-per-step N] [CASE ...]

A CASE is RECIPE@CARD, `full_sft_24gb@24gb`. The full-size model with random weights learns from rows of the longest
clips that are allowed, in a process of its own that may take no more than the card has (capped_run.py); half of the
steps are made after a resume. The recipes run as users run them: plan, data, checkpoints and receipts are theirs.
`--tiny` does all of it with the tiny model on the CPU, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.long_clips import texts, write_clips
from benchmarks.machine import machine
from benchmarks.shape import build_folder, released_shape
from voxtrain.durable import read_json, read_log_rows
from voxtrain.run_folder import RunFolder
from voxtrain.settings import compose

CASES = (
    *("lora_24gb@24gb", "lora_24gb@16gb", "lora_24gb@12gb"),
    *("full_sft_24gb@24gb", "full_sft_16gb@16gb", "full_sft_12gb@12gb", "full_sft_80gb@80gb"),
)
TINY_CASES = ("demo@24gb", "lora_demo@24gb")
CLIPS, SHORTER_S = 40, 0.1
HEAD = f"{'recipe on card':26}" + "".join(
    f"{name:>11}"
    for name in ("exit", "steps", "s/step", "card GiB", "process", "allocated", "predicted", "error", "off card")
)


@dataclass(frozen=True, slots=True)
class Sitting:
    """One process of a case."""

    exit_code: int
    steps: int
    step_s: float  # median; the first two, in which state is made, left out
    measured: dict[str, Any]  # of memory.json
    predicted: dict[str, Any]
    error: dict[str, Any]
    said: str

    @classmethod
    def of(cls, run: RunFolder, done: subprocess.CompletedProcess[str], first_step: int) -> Sitting:
        """What the run folder tells after it."""
        rows = [row for row in read_log_rows(run.metrics) if int(row["step"]) > first_step]
        seconds = [float(row["train/seconds"]) for row in rows[2:]]
        memory = read_json(run.memory) if run.memory.is_file() else {}
        return cls(
            done.returncode,
            len(rows),
            median(seconds) if seconds else float("nan"),
            memory.get("measured", {}),
            memory.get("predicted", {}),
            memory.get("error", {}),
            (done.stdout + done.stderr)[-3000:],
        )

    def to_line(self, name: str) -> str:
        """One line of the table."""
        peak, predicted = self.measured.get("peak_gib"), self.predicted.get("peak_gib")
        error = f"{predicted / peak - 1:+.1%}" if peak and predicted else "-"
        figures = [
            *(self.measured.get(each) for each in ("card_peak_gib", "process_peak_gib", "allocated_peak_gib")),
            predicted,
        ]
        told = [str(self.exit_code), str(self.steps), f"{self.step_s:.2f}"]
        told += ["-" if figure is None else f"{figure:.2f}" for figure in figures]
        off_card = self.measured.get("optimizer_off_card")
        told += [error, "-" if off_card is None else f"{off_card:.2f}"]
        return f"{name:26}" + "".join(f"{each:>11}" for each in told)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every case and print the table; the last lines are JSON. Returns 1 where a case failed."""
    chosen = _arguments(arguments)
    cases = chosen.cases or (TINY_CASES if chosen.tiny else CASES)
    print(json.dumps(machine() | _gpu()))
    found: dict[str, list[Sitting]] = {}
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as scratch:
        material = _material(Path(scratch), chosen.tiny)
        print(f"{chosen.steps} steps of {chosen.rows_per_step} rows each, all of the longest; half of them resumed")
        print(HEAD)
        for case in cases:
            found[case] = _case(case, Path(scratch) / "runs" / case, material, chosen)
    for case, sittings in found.items():
        print(json.dumps({"case": case, "sittings": [_record(one) for one in sittings]}))
    return int(any(one.exit_code for sittings in found.values() for one in sittings))


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stacks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"RECIPE@CARD; without any: {' '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows-per-step", type=int, default=8)
    parser.add_argument("--scratch", type=Path, help="folder for model, cache and runs: 60 GB, freed afterwards")
    parser.add_argument("--tiny", action="store_true", help="the tiny model on the CPU")
    return parser.parse_args(arguments)


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"torch": str(torch.__version__)}
    card = torch.cuda.get_device_properties(0)
    return {"torch": str(torch.__version__), "gpu": card.name, "gpu_gib": round(card.total_memory / 2**30, 1)}


def _material(scratch: Path, tiny: bool) -> tuple[str, ...]:
    """Model and rows, as settings."""
    settings = compose(["+recipe=demo"]) if tiny else compose(["model.path=.", "data.manifest=rows.jsonl"])
    seconds = (4.0 if tiny else settings.clean.max_seconds) - SHORTER_S
    manifest = write_clips(scratch / "clips", CLIPS, seconds)
    cache = f"data.cache_dir={scratch / 'cache'}"
    rows = ("data=manifest", f"data.manifest={manifest}", cache)
    if tiny:
        return rows
    began = time.perf_counter()
    folder = build_folder(scratch / "model", released_shape(), texts(CLIPS, seconds))
    print(f"model of random weights built in {time.perf_counter() - began:.0f} s")
    return (*rows, f"model.path={folder}")


def _case(case: str, root: Path, material: tuple[str, ...], chosen: argparse.Namespace) -> list[Sitting]:
    """Half of the steps, and the others after a resume."""
    recipe, _, card = case.partition("@")
    run, half = RunFolder(root), chosen.steps // 2
    begun = (
        *(f"+recipe={recipe}", *material, f"hydra.run.dir={root}", "validation.when=never"),
        *("train.batch_size=1", f"train.grad_accum={chosen.rows_per_step}", f"train.max_steps={half}"),
        *(f"train.schedule_steps={chosen.steps}", f"checkpoint.every={half}", f"checkpoint.state_every={half}"),
        *(() if chosen.tiny else (f"memory.card={card}",)),
    )
    resumed = (f"resume={root}", f"train.max_steps={chosen.steps}")
    sittings: list[Sitting] = []
    for first_step, overrides in ((0, begun), (half, resumed)):
        command = [sys.executable, "-m", "benchmarks.capped_run", card, *overrides]
        root.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        sittings.append(Sitting.of(run, done, first_step))
        print(sittings[-1].to_line(case if first_step == 0 else "  resumed"), flush=True)
        if done.returncode:
            print(sittings[-1].said)
            break
    return sittings


def _record(sitting: Sitting) -> dict[str, Any]:
    return {
        "exit_code": sitting.exit_code,
        "steps": sitting.steps,
        "step_s": sitting.step_s,
        "measured": sitting.measured,
        "predicted": {name: sitting.predicted.get(name) for name in ("peak_gib", "phase", "classes", "host_gib")},
        "error": sitting.error,
    }


if __name__ == "__main__":
    sys.exit(main())
