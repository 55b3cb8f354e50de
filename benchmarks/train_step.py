"""Our training step against upstream's loop, on the same rows and the same weights, in one process, taking turns.

    python -m benchmarks.train_step [--profile] [--rounds 5] [--threads 2] [--speech DIR] [--shape FILE] [--device cuda]
        [--memory-gib GIB]

On a CPU a scaled-down VoxCPM 2 trains in fp32 (shape_90m.json); with `--device cuda` the released architecture, its
weights random, as upstream's trainer does it there: fp32 weights under bf16 autocast. The last line is `ratio R`:
seconds of an upstream step over seconds of ours. docs/performance.md says what is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.clock import Clock, Neighbours
from benchmarks.contenders import Contenders, contenders
from benchmarks.floor import Products, copy_rate
from benchmarks.machine import machine
from benchmarks.material import SPEECH, read_material
from benchmarks.profiling import print_profile, recorded_products
from benchmarks.shape import SHAPE, build_folder, read_shape, released_shape
from voxtrain.fault import Fault, InputError
from voxtrain.model.size import parameter_counts

UPDATE_BYTES = 28
"""Of AdamW for each fp32 weight: gradient, two moments and weight are read, the last three written."""
AGAIN = 3
"""Times a round that our step and its floor take turns again: both are short, and a slow moment hits one of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code: 2 when speech, shape or device cannot be used."""
    chosen = _parsed(arguments)
    torch.set_num_threads(chosen.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="train_step_") as scratch:
            _compare(chosen, Path(scratch))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--speech", type=Path, default=SPEECH, help="folder with manifest.jsonl and its audio")
    parser.add_argument("--shape", type=Path, help=f"the model: on a CPU {SHAPE.name}, on a GPU the released one")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory-gib", type=float, help="with --device cuda: all memory that torch may take")
    parser.add_argument("--threads", type=int, default=2, help="threads that torch computes with")
    parser.add_argument("--rounds", type=int, default=5, help="how many steps of each loop count")
    parser.add_argument("--profile", action="store_true", help="say where the time of our step goes")
    return parser.parse_args(arguments)


def _compare(chosen: argparse.Namespace, scratch: Path) -> None:
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise InputError(Fault("--device cuda", "torch sees no CUDA GPU here", "leave it out to measure on the CPU"))
    clock = Clock(torch.device(chosen.device))
    if chosen.device == "cuda" and chosen.memory_gib:
        torch.cuda.set_per_process_memory_fraction(chosen.memory_gib * 2**30 / torch.cuda.mem_get_info()[1])
    material = read_material(chosen.speech)
    shape = read_shape(chosen.shape or SHAPE) if chosen.shape or chosen.device == "cpu" else released_shape()
    folder = build_folder(scratch / "model", shape, material.texts)
    all_of_them = contenders(folder, shape, material.rows, scratch / "latents", clock)
    _print_material(shape, material, all_of_them, clock)
    products = Products(recorded_products(all_of_them.plain), clock.device, chosen.device == "cuda")
    seconds = _take_turns(all_of_them, products, clock, chosen.rounds)
    ratio = _print_table(all_of_them, seconds, material.audio_s)
    all_of_them.floor = products.floor()
    _print_floor(products, shape, clock, median(seconds[all_of_them.ours]))
    if chosen.profile:
        print_profile(all_of_them, clock)
    print(f"ratio {ratio:.2f}")


def _take_turns(all_of_them: Contenders, products: Products, clock: Clock, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step by name, and the floor's in `products`, all in turn.

    The first round, in which memory is found and state made, does not count.
    """
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    neighbours = Neighbours()
    for round_ in range(rounds + 1):
        if round_ == 1:
            all_of_them.upstream.seconds.clear()
            seconds.clear()
            products.forget()
            neighbours = Neighbours()
        for name in all_of_them.steps:
            all_of_them.settle(name)
            seconds[name].append(_step_s(all_of_them, name, clock))
        products.step()
        for _ in range(AGAIN):
            seconds[all_of_them.ours].append(_step_s(all_of_them, all_of_them.ours, clock))
            products.step()
    print(f"other processes took {neighbours.share():.0%} of the processors meanwhile (a quiet machine: under 3 %)\n")
    return dict(seconds)


def _step_s(all_of_them: Contenders, name: str, clock: Clock) -> float:
    began = clock.now_s()
    all_of_them.steps[name]()
    return clock.now_s() - began


def _print_material(shape: dict[str, Any], material: Any, all_of_them: Contenders, clock: Clock) -> None:
    counts, data = parameter_counts(shape), all_of_them.data
    packed = [data.pack(row) for row in material.rows]
    positions, patches = sum(row.positions for row in packed), sum(row.loss_positions for row in packed)
    print(json.dumps(machine() | _computed_with(clock.device)))
    print(f"model: {counts['trainable'] / 1e6:.1f} M parameters that learn, AudioVAE {counts['audio_vae'] / 1e6:.1f} M")
    print(
        f"rows of a step: {len(packed)}, {material.audio_s:.1f} s of speech, {positions} positions, {patches} of audio"
    )
    print("  " + ", ".join(f"{row.id} ({row.duration_s:.1f} s)" for row in material.rows))
    print(f"latent cache: {data.cache_s:.2f} s for these rows, once in a lifetime; not counted in a step")


def _print_table(all_of_them: Contenders, seconds: dict[str, list[float]], audio_s: float) -> float:
    """What a step takes, loop by loop. Returns the ratio."""
    print(f"{'seconds a step':44} {'median':>7} {'best':>7} {'rows/s':>7} {'speech':>7} {'gain':>6}")
    before = None
    for name, found in seconds.items():
        middle = median(found)
        gain = "" if before is None else f"{before / middle:5.2f}x"
        per_s = f"{len(all_of_them.data.rows) / middle:7.2f} {audio_s / middle:6.1f}x"
        print(f"{name:44} {middle:7.3f} {min(found):7.3f} {per_s} {gain:>6}")
        before = middle
    parts = all_of_them.upstream_parts(len(next(iter(seconds.values()))))
    print("upstream's step by part: " + ", ".join(f"{part} {spent:.2f} s" for part, spent in parts.items()) + "\n")
    return median(seconds[all_of_them.first]) / median(seconds[all_of_them.ours])


def _computed_with(device: torch.device) -> dict[str, str | int]:
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__), **gpu}


def _print_floor(products: Products, shape: dict[str, Any], clock: Clock, ours_s: float) -> None:
    floor, weights = products.floor(), parameter_counts(shape)["trainable"]
    rate = floor.total_flop / floor.total_s
    print(f"arithmetic floor: {floor.total_s:.3f} s, for {floor.total_flop / 1e9:.1f} GFLOP of matrix products at the")
    print(f"  {rate / 1e9:.0f} GFLOP/s measured at their shapes, in turn with the steps; both are medians")
    print(f"ours takes {ours_s / floor.total_s:.2f} times its floor")
    from_memory_s = products.floor_from_memory().total_s
    update_s = UPDATE_BYTES * weights / copy_rate(clock.device)
    for also, least_s in (
        ("one operand of each product from memory", from_memory_s),
        ("that and the memory traffic of the update", from_memory_s + update_s),
    ):
        print(f"  with {also}: {least_s:.3f} s; ours takes {ours_s / least_s:.2f} times as long")
    print()


if __name__ == "__main__":
    sys.exit(main())
