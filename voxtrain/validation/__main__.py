"""Judge what is not judged yet, and select again.

    python -m voxtrain.validation RUN [--select-only] [--votes FILE] [overrides]

--select-only judges nothing, nor does --votes: it takes the votes of a blind comparison, as the listening page hands
them out, into the selection; a file that is handed in again counts once. --brief leaves the words about the selection
to a later call, as the process after training does: it judges, lets the checkpoints speak, and then selects again;
where another process judges, it waits. --beside is for judging while training goes on: it leaves the words out too, and
takes the lowest priority.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxtrain.checkpoint.lock import held
from voxtrain.door import run_door, run_settings, split_arguments
from voxtrain.fault import DONE, FAILED, Fault, InputError, RunFailed
from voxtrain.model.tuning import LoraTuning
from voxtrain.run_folder import RunFolder
from voxtrain.validation.evidence import LOSSES, Evidence, gather, write_checkpoints
from voxtrain.validation.judge import Judging, Sources, judge
from voxtrain.validation.marked import mark_again, marks
from voxtrain.validation.parts import by_flow_time, by_length, stop_gauge
from voxtrain.validation.select import select
from voxtrain.validation.settings import ValidationSettings
from voxtrain.validation.table import read_rows
from voxtrain.validation.votes import take_votes

if TYPE_CHECKING:
    import pyarrow as pa

    from voxtrain.settings import Settings

ONLY_SELECT, BRIEF, BESIDE, VOTES = "--select-only", "--brief", "--beside", "--votes"
LOWEST_PRIORITY = 19
JUDGING = ("draws", "max_positions", "dtype", "device")
SELECTS = (
    *(f"validation.{setting}" for setting in ValidationSettings.model_fields if setting not in ("when", *JUDGING)),
    *("train.loss_weights.diff", "train.loss_weights.stop", "logger", "name"),
)
"""The settings that selecting makes use of."""
JUDGES = (*(f"validation.{setting}" for setting in JUDGING), *SELECTS, "data.cache_dir", "model")
"""The settings that judging and selecting make use of."""


def main(arguments: list[str]) -> int:
    """Judge and select; FAILED when a checkpoint could not be judged."""
    files, arguments = votes_among(arguments)
    folder, flags, overrides = parse(arguments)
    select_only = ONLY_SELECT in flags or bool(files)
    settings = run_settings(folder, overrides, SELECTS if select_only else JUDGES)
    run = RunFolder(folder.resolve())
    if not run.checkpoint_steps() and not run.evaluated_rows.is_file():
        raise InputError(Fault(str(folder), "this run holds no checkpoint yet", "wait for the first, or train"))
    for sitting in take_votes(run, files):
        print(f"{len(sitting.votes)} blind votes between steps {' and '.join(map(str, sitting.steps))} are taken in.")
    if BESIDE in flags:
        os.nice(LOWEST_PRIORITY)
    with held(run.evaluation_lock, "judging", waits=BRIEF in flags):
        judging = Judging(read_rows(run)) if select_only else judge(run, settings.validation, sources(settings))
        if judging.table is None:
            what = "; ".join(f"step {step}: {why}" for step, why in judging.not_judged.items()) or "nothing was judged"
            raise InputError(Fault(str(folder), what, "judge first: python -m voxtrain.validation RUN"))
        weights = settings.train.loss_weights
        evidence = gather(judging.table, weights.diff, weights.stop)
        write_checkpoints(run, evidence)
        detail = _detail(run, judging.table, evidence, settings)
        wanted, before = settings.validation, marks(run)
        choice = select(run, evidence, wanted.rule, wanted.guards, judging.not_judged, detail)
    if not select_only:
        show_losses(evidence, choice)
    if not flags & {BRIEF, BESIDE}:
        show_choice(choice)
        tell_logger(settings, run)
        mark_again(run, before)
    if files:
        print(f"For the report to tell of the votes: python -m voxtrain.report {folder}")
    return FAILED if judging.not_judged else DONE


def _detail(run: RunFolder, table: pa.Table, evidence: Evidence, settings: Settings) -> dict[str, Any]:
    """Losses in parts. With a weight of its own for ends of clips, training's loss/stop is another one."""
    weights = settings.train.loss_weights
    held_out = {step: evidence.loss(step, "loss/stop") for step in evidence.steps}
    return {
        "by_flow_time": by_flow_time(table),
        "by_length": by_length(table, weights.diff, weights.stop),
        "stop_gauge": stop_gauge(run, held_out) if weights.stop_positive == 1.0 else None,
    }


def tell_logger(settings: Settings, run: RunFolder) -> None:
    """Send the losses to the logger. A page that does not open takes nothing from what was judged."""
    try:
        settings.logger.log_validation(run, settings.plain, settings.name)
    except (InputError, RunFailed) as error:
        print(f"The losses were not sent: {error}", file=sys.stderr)


def votes_among(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The files after --votes, and the arguments without them. Raises InputError for a --votes without a file."""
    files, rest, given = [], [], iter(arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name != VOTES:
            rest.append(argument)
            continue
        value = value if equals else next(given, "")
        if not value or value.startswith("-"):
            raise InputError(Fault(VOTES, "no file is named", f"{VOTES} FILE, as the listening page gave it"))
        files.append(Path(value))
    return files, rest


def parse(arguments: list[str]) -> tuple[Path, set[str], list[str]]:
    """The run folder, the flags and the overrides. Raises InputError for anything else."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    paths, overrides = split_arguments([argument for argument in arguments if not argument.startswith("-")])
    faults = [
        Fault(flag, "this door has no such flag", f"it has {ONLY_SELECT}, {VOTES} FILE, {BRIEF} and {BESIDE}")
        for flag in flags
        if flag not in (ONLY_SELECT, BRIEF, BESIDE)
    ]
    if len(paths) != 1:
        given = "no run folder was named" if not paths else f"{len(paths)} run folders were named"
        faults.append(Fault("python -m voxtrain.validation", given, "name one: outputs/<name>/<time>"))
    if faults:
        raise InputError(*faults)
    return paths[0], set(flags), overrides


def sources(settings: Settings) -> Sources:
    """What the run was made from."""
    tuning = settings.tuning if isinstance(settings.tuning, LoraTuning) else None
    latents = settings.data.latent_folder()
    return Sources(settings.model.folder, tuning, latents, settings.clean.trim_tail_silence)


def show_losses(evidence: Evidence, choice: dict[str, Any]) -> None:
    """Print the table of checkpoints."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("step", *LOSSES, "less the selected's", "P(best)"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    best = evidence.probabilities_best()
    for step in evidence.steps:
        losses = (f"{evidence.loss(step, name):.4f}" for name in LOSSES)
        share = f"{best[step]:.0%}" if step in best else ""
        table.add_row(str(step), *losses, _less_the_selected(choice, step), share, _mark(choice, step))
    Console(highlight=False).print(table)


def show_choice(choice: dict[str, Any]) -> None:
    """Print which checkpoint is selected and why, and what speaks against it."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n[bold]Selected: step {choice['selected_step']}[/bold] (rule: {choice['rule']})")
    console.print(choice["reason"], markup=False)
    for words in choice["would_change"]:
        console.print(f"What would change it: {words}.", markup=False)
    for warning in choice["warnings"]:
        console.print(f"Mind: {warning}.", markup=False)
    sys.stdout.flush()


def _less_the_selected(choice: dict[str, Any], step: int) -> str:
    found = (choice["intervals"] or {}).get(str(step))
    return "" if found is None or found["low"] is None else f"{found['low']:+.4f} to {found['high']:+.4f}"


def _mark(choice: dict[str, Any], step: int) -> str:
    if step == choice["selected_step"]:
        return "selected"
    return "base model" if step == 0 else "ties" if choice["intervals"] and step in choice["tie_set"] else ""


if __name__ == "__main__":
    run_door(main)
