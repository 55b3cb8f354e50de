"""What a save costs: host memory against Lightning's default writer, and how long training stands still.

    python -m benchmarks.checkpoint [--layers N] [--saves N] [--rows N]

Square layers of 1024 are trained with AdamW by one thread (on a GPU the CPU is free as well), and their full state
(weights and two moments, fp32) is saved every eighth step: by Lightning's ModelCheckpoint, by our writer while training
waits, and by ours beside training with several buffers, each in a process of its own. The last lines are the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine

if TYPE_CHECKING:
    from benchmarks.saving import Seen

SHARE_OF_STATE = 2.0 / 12.9
"""The default buffer (checkpoint.buffer_gib) over the state of full fine-tuning with 8-bit moments, GiB."""


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--layers", type=int, default=48, help="of 1.05 million parameters each")
    parser.add_argument("--rows", type=int, default=32, help="rows of a step: how long it takes")
    parser.add_argument("--saves", type=int, default=3, help="of each way that count")
    given = parser.parse_args(arguments)
    import torch

    from benchmarks.saving import EVERY, WIDTH, Way, watch
    from voxtrain.metrics.noise import silence_third_parties

    silence_third_parties()
    warnings.filterwarnings("ignore")
    model_gib = given.layers * (WIDTH + 1) * WIDTH * 4 / 2**30
    state_gib = 3 * model_gib
    ways = (
        Way("no save", "none", None),
        Way("Lightning's writer", "lightning", None),
        Way("ours, training waits", "ours", None),
        Way("ours beside training, no buffer", "ours", 0.0),
        Way("ours beside training, default share", "ours", SHARE_OF_STATE * state_gib),
        Way("ours beside training, room for all", "ours", 1.1 * state_gib),
    )
    print(json.dumps(machine() | {"threads": 1, "torch": str(torch.__version__)}))
    print(f"model {model_gib:.2f} GiB in fp32, state {state_gib:.2f} GiB; {given.saves} saves of each way, medians")
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch) / str(number) for number in range(len(ways))]
        seen = {
            way: _apart(watch, way, given.layers, given.rows, given.saves, place)
            for way, place in zip(ways, places, strict=True)
        }
    plain, lightning, waits = (seen[way] for way in ways[:3])
    head = f"{'':38} {'added':>7} {'of the':>7} {'a step':>7} {'a save':>7} {'stood':>7} {'steps':>7}"
    print(head + f"\n{'':38} {'GiB':>7} {'model':>7} {'s':>7} {'took s':>7} {'still s':>7} {'cost s':>7}")
    for way, found in seen.items():
        added = max(found.added_gib, found.peak_gib - plain.peak_gib if way.buffer_gib is not None else 0.0)
        took = "" if found.taken_s is None else f"{found.taken_s:.2f}"
        stood = "" if found.waited_s is None else f"{found.waited_s:.2f}"
        cost = found.cycle_s - EVERY * found.step_s
        print(
            f"{way.name:38} {added:7.2f} {added / model_gib:7.2f} {found.step_s:7.2f} {took:>7} {stood:>7} {cost:7.2f}"
        )
    print()
    of_ours = max(waits.added_gib, 2**-10)
    print(
        f"ratio memory {lightning.added_gib / of_ours:.1f}  (host memory a save adds: Lightning's over ours, waiting)"
    )
    for way in ways[3:]:
        assert waits.waited_s is not None
        found = seen[way]
        assert found.waited_s is not None
        print(f"ratio stall {waits.waited_s / max(found.waited_s, 1e-3):.1f}  (waiting over {way.name})")
    return 0


def _apart(watch: Callable[..., Seen], *arguments: Any) -> Seen:
    """In a process of its own, forked before anything was computed: what one way leaves in memory burdens no other."""
    with get_context("fork").Pool(1) as process:
        return process.apply(watch, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
