"""`python -m voxtrain.listening RUN [overrides]`: the same texts from every checkpoint, and a page to hear them."""

from __future__ import annotations

from pathlib import Path

from voxtrain.door import run_door, run_settings, split_arguments
from voxtrain.fault import DONE, FAILED, Fault, InputError
from voxtrain.listening.generate import Heard, listen
from voxtrain.listening.page import write_page
from voxtrain.listening.table import lines
from voxtrain.model.tuning import LoraTuning
from voxtrain.run_folder import RunFolder

USES = ("listening", "model", "name")
"""The settings that this door makes use of."""


def main(arguments: list[str]) -> int:
    """Make the samples that are missing and the page; FAILED when a checkpoint could not speak at all."""
    folder, overrides = parse(arguments)
    settings = run_settings(folder, overrides, USES)
    run = RunFolder(folder.resolve())
    if not run.checkpoint_steps():
        raise InputError(Fault(str(folder), "this run holds no checkpoint", "wait for the first, or train"))
    tuning = settings.tuning if isinstance(settings.tuning, LoraTuning) else None
    heard = listen(run, settings.listening, settings.model.folder, tuning)
    write_page(run, heard.samples, lines(settings.listening), f"{settings.name}, {run.root.name}")
    show(run, heard)
    return FAILED if heard.mute else DONE


def parse(arguments: list[str]) -> tuple[Path, list[str]]:
    """The run folder and the overrides. Raises InputError for anything else."""
    paths, overrides = split_arguments([argument for argument in arguments if not argument.startswith("-")])
    faults = [
        Fault(flag, "this door has no such flag", "give a run folder and overrides key=value")
        for flag in arguments
        if flag.startswith("-")
    ]
    if len(paths) != 1:
        given = "no run folder was named" if not paths else f"{len(paths)} run folders were named"
        faults.append(Fault("python -m voxtrain.listening", given, "name one: outputs/<name>/<time>"))
    if faults:
        raise InputError(*faults)
    return paths[0], overrides


def show(run: RunFolder, heard: Heard) -> None:
    """Print what came of it."""
    failed = sum(bool(sample.failed) for sample in heard.samples)
    runaway = sum(sample.runaway for sample in heard.samples)
    print(f"{len(heard.samples)} samples ({heard.made} new), {failed} failed, {runaway} did not stop by themselves.")
    for step, why in heard.mute.items():
        print(f"Step {step} could not speak: {why}")
    print(f"To hear them: {run.listening_page}")


if __name__ == "__main__":
    run_door(main)
