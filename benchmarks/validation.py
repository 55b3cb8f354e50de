"""Our validation against that of upstream's trainer: speed, how sure a difference is, and memory.

    python -m benchmarks.validation [speed] [spread] [memory] [--rounds 5] [--threads 2] [--speech DIR] [--shape FILE]

speed: seconds to judge the same clips with the same weights, in one process, taking turns. spread: how far the
difference of two checkpoints moves with the draws alone. memory: the peak of a fresh process that judges a run folder.
Named none, all three. docs/choosing.md says what is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.clock import Clock, Neighbours
from benchmarks.draw_spread import Redrawn, redrawn, spread
from benchmarks.judged_material import GIB, judge_apart, judged_run
from benchmarks.machine import machine
from benchmarks.material import SPEECH, Material, read_material
from benchmarks.our_loop import Choices, OurData, OurLoop
from benchmarks.shape import SHAPE, build_folder, read_shape
from benchmarks.upstream_loop import UpstreamLoop
from benchmarks.upstream_validation import UpstreamValidation
from voxtrain.fault import InputError
from voxtrain.manifest.row import Row
from voxtrain.model.size import parameter_counts
from voxtrain.model.upstream import VoxCPM2Model, load_model
from voxtrain.settings import compose
from voxtrain.validation.losses import losses_on_fixed_draws

PARTS = ("speed", "spread", "memory")
CPU = torch.device("cpu")
HELD_OUT, JUDGED = 12, 40
"""Clips whose losses are drawn for again and again, and clips of the run whose judging is watched."""
LEARNING, TUNING = (20, 3e-4), (10, 1e-5)
"""Steps and learning rate: first, so that the model knows something; then as one fine-tunes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code: 2 when speech or shape cannot be used."""
    chosen = _parsed(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        material, shape = read_material(chosen.speech), read_shape(chosen.shape)
        print(json.dumps(machine() | {"threads": chosen.threads, "torch": str(torch.__version__)}))
        counts = parameter_counts(shape)
        print(f"model: {counts['trainable'] / 1e6:.1f} M parameters that learn, fp32")
        with tempfile.TemporaryDirectory(prefix="validation_") as scratch:
            folder = build_folder(Path(scratch) / "model", shape, material.texts)
            for part in chosen.parts or PARTS:
                print(f"\n{part}", flush=True)
                PART[part](chosen, Path(scratch), folder, shape, material)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which to measure: {', '.join(PARTS)}; none: all")
    parser.add_argument("--speech", type=Path, default=SPEECH, help="folder with manifest.jsonl and its audio")
    parser.add_argument("--shape", type=Path, default=SHAPE, help="the model")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch computes with")
    parser.add_argument("--rounds", type=int, default=5, help="how often each loop's time counts")
    chosen = parser.parse_args(arguments)
    unknown = [part for part in chosen.parts if part not in PARTS]  # `choices` refuses none at all on Python 3.11
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}: {', '.join(PARTS)}")
    return chosen


def _speed(chosen: argparse.Namespace, scratch: Path, folder: Path, shape: dict[str, Any], material: Material) -> None:
    clock, settings = Clock(CPU), compose(["+recipe=demo"]).validation
    loop = UpstreamLoop(folder, material.rows, clock)
    upstream, data = UpstreamValidation(loop), OurData(folder, shape, material.rows, scratch / "latents")
    packed = [data.pack(row) for row in material.rows]

    def ours(draws: int) -> Callable[[], object]:
        return lambda: losses_on_fixed_draws(loop.model.eval(), packed, draws, settings.max_positions, CPU, "judging")

    contenders = {
        "upstream's loop": (upstream.run, 1),
        "ours, one draw a row": (ours(1), 1),
        f"ours, {settings.draws} draws a row": (ours(settings.draws), settings.draws),
    }
    positions = sum(row.positions for row in packed)
    print(f"{len(packed)} clips, {material.audio_s:.1f} s of speech, {positions} positions")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    neighbours = Neighbours()
    for round_ in range(chosen.rounds + 1):
        if round_ == 1:  # the first does not count: memory is found
            upstream.seconds.clear()
            neighbours = Neighbours()
        for name, (run, _) in contenders.items():
            began = clock.now_s()
            run()
            if round_:
                seconds[name].append(clock.now_s() - began)
    print(f"other processes took {neighbours.share():.0%} of the processors meanwhile (a quiet machine: under 3 %)")
    _print_speed(seconds, {name: draws for name, (_, draws) in contenders.items()}, len(packed))
    told = ", ".join(f"{part} {spent / chosen.rounds:.2f} s" for part, spent in upstream.seconds.items())
    print(f"upstream's loop by part: {told}")


def _print_speed(seconds: dict[str, list[float]], draws: dict[str, int], rows: int) -> None:
    print(f"{'seconds for all clips':28} {'median':>7} {'best':>7} {'clips/s':>8} {'losses/s':>9} {'times':>6}")
    first = None
    for name, found in seconds.items():
        middle = median(found)
        losses = rows * draws[name] / middle
        first = losses if first is None else first
        times = f"{losses / first:.2f}x"
        print(f"{name:28} {middle:7.3f} {min(found):7.3f} {rows / middle:8.2f} {losses:9.2f} {times:>6}")


def _spread(chosen: argparse.Namespace, scratch: Path, folder: Path, shape: dict[str, Any], material: Material) -> None:
    draws = compose(["+recipe=demo"]).validation.draws
    rows = _others(chosen.speech, material, HELD_OUT)
    held_out = OurData(folder, shape, rows, scratch / "latents")
    packed = [held_out.pack(row) for row in rows]
    loop = OurLoop(
        load_model(folder, None, CPU, torch.float32),
        OurData(folder, shape, material.rows, scratch / "latents"),
        Choices(packed=True, one_pass=True, kernels="cpu"),
        CPU,
    )
    found: list[Redrawn] = []
    for seed, (steps, rate) in enumerate(((0, 0.0), LEARNING, TUNING, TUNING), start=1):
        _learn(loop, steps, rate)
        found.append(redrawn(_judged(loop), packed, draws, held_out.cfg_rate, seed))
    base, *tuned = found
    passes = _passes(shape, sum(row.positions for row in packed), sum(row.loss_positions for row in packed), draws)
    print(f"standard errors of a difference of loss/diff on {len(rows)} clips, of draws alone; {draws} fixed draws")
    print(
        f"one of our judgements has the arithmetic of {passes:.2f} passes of upstream's loop, its AudioVAE not counted"
    )
    head = ("difference", "of the loss", "fixed", "unpaired", "fresh, 1", "ten rows", "same draws", "same arithmetic")
    print(f"{'':34}" + "".join(f"{name:>16}" for name in head))
    last, middle, first = tuned[2], tuned[1], tuned[0]
    for name, later, earlier in (
        (f"{TUNING[0]} steps apart at {TUNING[1]:g}", last, middle),
        (f"{2 * TUNING[0]} steps apart at {TUNING[1]:g}", last, first),
        (f"the base and {LEARNING[0]} steps at {LEARNING[1]:g}", first, base),
    ):
        one = spread(later, earlier)
        figures = (one.difference, one.relative, one.fixed, one.fixed_unpaired, one.fresh, one.ten_rows)
        ratios = (one.fresh / draws**0.5 / one.fixed, one.fresh / passes**0.5 / one.fixed)
        print(
            f"{name:34}" + "".join(f"{each:16.5f}" for each in figures) + "".join(f"{each:15.1f}x" for each in ratios)
        )


def _others(speech: Path, material: Material, count: int) -> tuple[Row, ...]:
    """`count` clips of all lengths (all, where there are fewer), none that is trained on where that can be."""
    known = len(material.texts)
    learnt = {row.id for row in material.rows}
    for wanted in range(min(count, known), known + 1):
        rows = [row for row in read_material(speech, wanted).rows if row.id not in learnt]
        if len(rows) >= count:
            return tuple(rows[:count])
    return material.rows


def _learn(loop: OurLoop, steps: int, rate: float) -> None:
    loop.module.rule = loop.module.rule.model_copy(update={"lr": rate})
    for _ in range(steps):
        loop.step()


def _judged(loop: OurLoop) -> VoxCPM2Model:
    model: VoxCPM2Model = loop.module.model.eval()
    return model


def _passes(shape: dict[str, Any], positions: int, audio: int, draws: int) -> float:
    """How many times upstream's forward goes over the rows for the matrix products of one of our judgements."""
    counts, patch = parameter_counts(shape), int(shape["patch_size"])
    language = (
        counts["base_lm"] + counts["residual_lm"] - shape["lm_config"]["vocab_size"] * shape["lm_config"]["hidden_size"]
    )
    encoder, decoder = counts["feat_encoder"] * (patch + 1), counts["feat_decoder"] * (2 * patch + 3)
    ours = positions * language + audio * (encoder + draws * decoder)
    return float(ours / (positions * (language + encoder + decoder)))


def _memory(chosen: argparse.Namespace, scratch: Path, folder: Path, shape: dict[str, Any], material: Material) -> None:
    rows = read_material(chosen.speech, min(JUDGED, len(material.texts))).rows
    run = judged_run(scratch / "run", folder, rows, (0, 1))
    weights = parameter_counts(shape)["trainable"] * 4 / GIB
    for what in ("latents encoded by the judge itself", "latents from the cache, as after training"):
        found = judge_apart(run, chosen.threads)
        if found.exit_code:
            print(found.said)
        over = found.peak_gib - weights
        print(f"{what}: exit code {found.exit_code}, {found.seconds:.1f} s, peak {found.peak_gib:.2f} GiB,")
        print(f"  weights {weights:.2f} GiB and {over:.2f} GiB; {len(rows)} clips, {2} checkpoints")
        run.evaluated_rows.unlink(missing_ok=True)


PART = {"speed": _speed, "spread": _spread, "memory": _memory}

if __name__ == "__main__":
    sys.exit(main())
