"""The same texts from every checkpoint, measured and scored, and a page to hear them.

    python -m voxtrain.listening RUN [--page] [overrides]

Makes and scores what is missing. --page makes nothing: it writes the page again, for another selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from voxtrain.door import run_door, run_settings, split_arguments
from voxtrain.fault import DONE, FAILED, Fault, InputError
from voxtrain.listening.ceiling import Recording, make_ceiling, read_recordings, split_rows, write_recordings
from voxtrain.listening.generate import Heard, listen
from voxtrain.listening.page import Listened, write_page
from voxtrain.listening.score import Heard as Sound
from voxtrain.listening.score import Scorer, VoiceScorer, WordScorer, score_all
from voxtrain.listening.settings import ListeningSettings
from voxtrain.listening.summary import summaries, training_pace, write_summaries
from voxtrain.listening.table import Line, Sample, lines, read_samples, write_samples
from voxtrain.manifest.row import Row
from voxtrain.model.tuning import LoraTuning
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from voxtrain.model.upstream import AudioVAEV2
    from voxtrain.settings import Settings

USES = ("listening", "model", "name")
"""The settings that this door makes use of."""
PAGE = "--page"


def main(arguments: list[str]) -> int:
    """Make the samples that are missing and the page; FAILED when a checkpoint could not speak at all."""
    folder, flags, overrides = parse(arguments)
    settings = run_settings(folder, overrides, USES)
    wanted, run = settings.listening, RunFolder(folder.resolve())
    if faults := wanted.reference_faults():
        raise InputError(*faults)
    rows, title = split_rows(run, "train"), f"{settings.name}, {run.root.name}"
    if PAGE in flags:
        return page_again(run, wanted, rows, title)
    if not run.checkpoint_steps():
        raise InputError(Fault(str(folder), "this run holds no checkpoint", "wait for the first, or train"))
    tuning = settings.tuning if isinstance(settings.tuning, LoraTuning) else None
    heard = listen(run, wanted, settings.model.folder, tuning)
    recordings = make_ceiling(run, wanted.ceiling, lambda: _vae(settings, run, tuning))
    write_recordings(run, recordings)
    samples, recordings, notes = score(run, wanted, rows, heard.samples, recordings)
    heard.samples = samples
    finish(run, lines(wanted), rows, title, samples, recordings, notes)
    show(run, heard, notes)
    return FAILED if heard.mute else DONE


def page_again(run: RunFolder, settings: ListeningSettings, rows: Sequence[Row], title: str) -> int:
    """Write the page from what is there. Raises InputError where nothing was heard yet."""
    samples = read_samples(run)
    if not samples:
        remedy = f"listen first: python -m voxtrain.listening {run.root}"
        raise InputError(Fault(str(run.listening_table), "no checkpoint of this run has spoken", remedy))
    order = list(dict.fromkeys(sample.line for sample in samples))  # the table's, whatever the settings ask for by now
    finish(run, order, rows, title, samples, read_recordings(run), missing_scores(settings, samples))
    return DONE


def missing_scores(settings: ListeningSettings, samples: Sequence[Sample]) -> list[str]:
    """Which scores are wanted and were never given to any sample."""
    wanted = [
        ("words", settings.word_errors, any(sample.scores.words_by for sample in samples)),
        ("voices", settings.similarity, any(sample.scores.similarity_by for sample in samples)),
    ]
    return [f"{what}: python -m voxtrain.listening RUN says why" for what, by, found in wanted if by and not found]


def score(
    run: RunFolder,
    settings: ListeningSettings,
    rows: Sequence[Row],
    samples: list[Sample],
    recordings: list[Recording],
) -> tuple[list[Sample], list[Recording], list[str]]:
    """Samples and recordings with the scores that can be had, and what could not be measured."""
    order = lines(settings)

    def parted(heard: list[Sound]) -> tuple[list[Sample], list[Recording]]:
        return [s for s in heard if isinstance(s, Sample)], [r for r in heard if isinstance(r, Recording)]

    def keep(heard: list[Sound]) -> None:
        found = parted(heard)
        write_samples(run, found[0], order)
        write_recordings(run, found[1])

    scorers: list[Scorer] = [] if settings.word_errors is None else [WordScorer(settings.word_errors)]
    if settings.similarity is not None:
        scorers.append(VoiceScorer(settings.similarity, rows, settings.reference))
    heard, notes = score_all(run, [*samples, *recordings], scorers, keep)
    return *parted(heard), notes


def finish(
    run: RunFolder,
    order: Sequence[Line],
    rows: Sequence[Row],
    title: str,
    samples: Sequence[Sample],
    recordings: Sequence[Recording],
    notes: Sequence[str],
) -> None:
    """Write checkpoints.csv and the page."""
    pace = training_pace(rows)
    found = summaries(samples, pace)
    write_summaries(run, found)
    write_page(run, Listened(title, samples, order, recordings, found, pace, notes))


def _vae(settings: Settings, run: RunFolder, tuning: LoraTuning | None) -> AudioVAEV2:
    from voxtrain.model.upstream import load_vae

    return load_vae(settings.model.folder() if tuning else run.checkpoint(run.checkpoint_steps()[0]))


def parse(arguments: list[str]) -> tuple[Path, set[str], list[str]]:
    """The run folder, the flags and the overrides. Raises InputError for anything else."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    paths, overrides = split_arguments([argument for argument in arguments if not argument.startswith("-")])
    faults = [Fault(flag, "this door has no such flag", f"it has {PAGE}") for flag in sorted(flags - {PAGE})]
    if len(paths) != 1:
        given = "no run folder was named" if not paths else f"{len(paths)} run folders were named"
        faults.append(Fault("python -m voxtrain.listening", given, "name one: outputs/<name>/<time>"))
    if faults:
        raise InputError(*faults)
    return paths[0], flags, overrides


def show(run: RunFolder, heard: Heard, notes: Sequence[str]) -> None:
    """Print what came of it."""
    failed = sum(bool(sample.failed) for sample in heard.samples)
    runaway = sum(sample.runaway for sample in heard.samples)
    print(f"{len(heard.samples)} samples ({heard.made} new), {failed} failed, {runaway} did not stop by themselves.")
    for step, why in heard.mute.items():
        print(f"Step {step} could not speak: {why}")
    for note in notes:
        print(f"Not scored: {note}")
    print(f"To hear them: {run.listening_page}")


if __name__ == "__main__":
    run_door(main)
