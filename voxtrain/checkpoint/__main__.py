"""`python -m voxtrain.checkpoint prune RUN [--apply]` and `export RUN [--step N|selected] OUT [--merged]`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from voxtrain.checkpoint.retention import Verdict, apply, verdicts
from voxtrain.door import run_door
from voxtrain.fault import DONE, Fault, InputError
from voxtrain.memory.disk import told_size
from voxtrain.run_folder import RunFolder


def main(arguments: list[str]) -> int:
    """Do what the arguments say; returns the exit code."""
    given = _parser().parse_args(arguments)
    run = RunFolder(given.run.resolve())
    if not run.checkpoint_steps():
        raise InputError(Fault(str(given.run), "this run folder holds no checkpoint", "name outputs/<name>/<time>"))
    if given.command == "prune":
        _prune(run, really=given.apply)
    else:
        _export(run, given)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m voxtrain.checkpoint", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prune = commands.add_parser("prune", help="which judged checkpoints may go; nothing unjudged ever does")
    prune.add_argument("run", type=Path)
    prune.add_argument("--apply", action="store_true", help="delete them (without: only say so)")
    out = commands.add_parser("export", help="a folder that upstream's tools load")
    out.add_argument("run", type=Path)
    out.add_argument("out", type=Path)
    out.add_argument("--step", default="selected", help="a step, or `selected` (the default)")
    out.add_argument("--merged", action="store_true", help="put a LoRA adapter into its base model")
    return parser


def _prune(run: RunFolder, *, really: bool) -> None:
    planned = verdicts(run)
    for verdict in planned:
        print(_told(verdict))
    going = [verdict for verdict in planned if not verdict.stays]
    if not really:
        print(f"\n{len(going)} of {len(planned)} would go and set {_size(going)} free; --apply deletes them.")
        return
    gone = apply(run)
    print(f"\n{len(gone)} deleted, {_size(gone)} set free.")


def _size(found: list[Verdict]) -> str:
    return told_size(sum(verdict.size_bytes for verdict in found))


def _told(verdict: Verdict) -> str:
    fate = "stays" if verdict.stays else "goes "
    return f"step {verdict.step:>7}  {fate}  {told_size(verdict.size_bytes):>10}  {verdict.reason}"


def _export(run: RunFolder, given: argparse.Namespace) -> None:
    from voxtrain.checkpoint.export import chosen_step, export  # torch is imported late

    step = chosen_step(run, given.step)
    began_s = time.monotonic()
    out = export(run, step, given.out, merged=given.merged)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"Step {step} is in {out}: {told_size(size)}, checked and written in {time.monotonic() - began_s:.1f} s")


if __name__ == "__main__":
    run_door(main)
