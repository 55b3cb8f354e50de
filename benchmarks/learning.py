"""What each memory stack learns, against fp32: the same run under all of them, judged on the same rows and draws.

    python -m benchmarks.learning [--folder F] [--seeds N] [--steps N] [STACK ...]

The tiny model learns one domain in fp32 and is saved in bf16, as the released model is; then each stack of conf/memory
trains it on another domain, as a run would (benchmarks/two_domains.py). What it learnt is judged in fp32 by the losses
of validation, on fixed draws; differences from fp32 are paired by seed, row and draw. With --folder what was run is
kept there, and a later call runs the rest; the table is of all that the folder holds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.our_loop import Bare
from benchmarks.two_domains import held_out, steps
from voxtrain.assembly import vox_module
from voxtrain.durable import read_json, write_json
from voxtrain.metrics.noise import silence_third_parties
from voxtrain.model.module import VoxModule
from voxtrain.model.upstream import load_model
from voxtrain.optim.adamw import AdamW
from voxtrain.ranks.group import ALONE
from voxtrain.settings import Settings, compose
from voxtrain.validation.losses import losses_on_fixed_draws

CPU = torch.device("cpu")
REFERENCE, YARDSTICK, PLAIN = "fp32", "fp32, 8-bit state", "plain bf16 (refused)"
STACKS: dict[str, tuple[str, ...]] = {
    REFERENCE: ("memory=cpu",),
    YARDSTICK: ("memory=cpu", "memory.state=8bit"),
    "80gb": ("memory=80gb",),
    "24gb": ("memory=24gb",),
    "16gb": ("memory=16gb",),
    "16gb, kahan": ("memory=16gb", "memory.rounding=kahan"),
    "12gb": ("memory=12gb",),
    "12gb, fp32 state": ("memory=12gb", "memory.state=host"),
    PLAIN: ("memory=16gb",),
}
"""What is compared, and the settings of each; the last is trained as the settings refuse to."""
LR, FIRST_LR, FIRST_STEPS = 1e-4, 1e-3, 400
"""LR: an update in proportion to a weight of the tiny model is nearly what 1e-5 is to one of the released model."""
ROWS, MICRO_BATCHES = 8, 2
HELD_OUT_ROWS, DRAWS = 192, 4


class PlainAdamW(AdamW, frozen=True):
    """torch's own AdamW on bf16 weights: `memory.weights=bf16 memory.rounding=nearest`, which is refused."""

    def build(
        self, parameters: Iterable[torch.nn.Parameter], state: str, rounding: str, seed: int, gradients: str
    ) -> torch.optim.Optimizer:
        """See AdamW."""
        return torch.optim.AdamW(parameters, **self.model_dump(), fused=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("stacks", nargs="*", metavar="STACK", help=f"without any: {'; '.join(STACKS)}")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each stack")
    parser.add_argument("--steps", type=int, default=300)
    chosen = parser.parse_args(arguments)
    silence_third_parties()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.folder or Path(scratch)).resolve()
        start = _start(folder)
        for seed in range(1, chosen.seeds + 1):
            for stack in chosen.stacks or STACKS:
                _once(folder, start, stack, seed, chosen.steps)
        print(json.dumps(machine() | {"torch": str(torch.__version__)}))
        print("\n".join(_table(folder, chosen.steps, chosen.seeds)))
    return 0


def _start(folder: Path) -> Path:
    """The model that has learnt the first domain, made once; its own losses on the second domain beside it."""
    model = folder / "model"
    if not model.is_dir():
        settings = _settings((), None, FIRST_LR, FIRST_STEPS, 0)
        learnt = _learn(settings, steps(0, 0, FIRST_STEPS, 2 * ROWS, MICRO_BATCHES), AdamW)
        shutil.copytree(settings.model.folder(), model)
        narrow = {name: tensor.bfloat16().contiguous() for name, tensor in learnt.items()}
        save_file(narrow, model / "model.safetensors", {"format": "pt"})
    if not (folder / "start.json").is_file():
        weights = dict(load_model(model, None, CPU, torch.float32).state_dict())
        write_json(folder / "start.json", {"losses": _judged(model, weights)})
    return model


def _once(folder: Path, start: Path, stack: str, seed: int, count: int) -> None:
    """One run, unless the folder has it."""
    path = _path(folder, stack, seed, count)
    if path.is_file():
        return
    began = time.perf_counter()
    settings = _settings(STACKS[stack], start, LR, count, seed)
    learnt = _learn(settings, steps(1, seed, count, ROWS, MICRO_BATCHES), PlainAdamW if stack == PLAIN else AdamW)
    write_json(path, {"losses": _judged(start, learnt), "seconds": time.perf_counter() - began})
    print(f"{stack}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def _path(folder: Path, stack: str, seed: int, count: int) -> Path:
    return folder / f"{stack.replace(' ', '_').replace(',', '')}_seed_{seed}_steps_{count}.json"


def _settings(stack: Sequence[str], model: Path | None, lr: float, count: int, seed: int) -> Settings:
    """Those of a run on a GPU, for which stacks are made, but for where it runs."""
    demo = compose(["+recipe=demo"])
    wanted = [
        *("+recipe=demo", "trainer=one_gpu", f"seed={seed}", f"optimizer.lr={lr}", f"train.max_steps={count}"),
        *(stack or ("memory=cpu",)),
        *(() if model is None else (f"model.path={model}",)),
    ]
    return replace(compose(wanted), trainer=demo.trainer)


def _learn(settings: Settings, batches: Iterable[Any], rule: type[AdamW]) -> dict[str, Tensor]:
    """The weights that a checkpoint would hold after all steps."""
    module: VoxModule = vox_module(settings, ALONE)
    module.rule = rule(**settings.optimizer.model_dump())
    bare = Bare(module.configure_optimizers())
    module.optimizers = lambda: bare  # type: ignore[method-assign, assignment]
    module.manual_backward = Tensor.backward  # type: ignore[method-assign]
    for batch in batches:
        module.training_step(batch)
    if module.skipped:
        raise RuntimeError(f"steps {module.skipped} made no update")
    return module.learnt_tensors()


def _judged(folder: Path, weights: dict[str, Tensor]) -> list[float]:
    """loss/total of every held-out row and draw, in fp32."""
    model = load_model(folder, None, CPU, torch.float32)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    found = losses_on_fixed_draws(model, held_out(1, HELD_OUT_ROWS), DRAWS, 1024, CPU, "Judging")
    return [one.diff + one.stop for one in found]


def _table(folder: Path, count: int, seeds: int) -> list[str]:
    """A line for each stack: the mean over seeds of its paired difference from fp32, and the spread of that."""
    start = mean(read_json(folder / "start.json")["losses"])
    held = {stack: _ends(folder, stack, count, seeds) for stack in STACKS}
    gain = start - mean(held[REFERENCE].values()) if held[REFERENCE] else float("nan")
    lines = [f"loss before: {start:.4f}; fp32 gains {gain:.4f} in {count} steps", ""]
    lines += ["| stack | difference from fp32 | by seed | of the gain |", "|---|---|---|---|"]
    for stack, ends in held.items():
        apart = [ends[seed] - held[REFERENCE][seed] for seed in sorted(ends.keys() & held[REFERENCE].keys())]
        if apart:
            spread = f" (sd {stdev(apart):.4f})" if len(apart) > 1 else ""
            each = ", ".join(f"{one:+.4f}" for one in apart)
            lines.append(f"| {stack} | {mean(apart):+.4f}{spread} | {each} | {mean(apart) / gain:+.2%} |")
    return lines


def _ends(folder: Path, stack: str, count: int, seeds: int) -> dict[int, float]:
    """The loss that a stack ends with, by seed."""
    paths = {seed: _path(folder, stack, seed, count) for seed in range(1, seeds + 1)}
    return {seed: mean(read_json(path)["losses"]) for seed, path in paths.items() if path.is_file()}


if __name__ == "__main__":
    sys.exit(main())
