"""The plan of a run, from its settings: the memory of its longest step and the bytes that it will write. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from voxtrain.composition import known_options
from voxtrain.manifest.row import Row
from voxtrain.memory.disk import DiskPlan, disk_plan
from voxtrain.memory.longest import Longest, assumed_longest, longest_of, longest_rows
from voxtrain.memory.plan import MemoryPlan, Work, predict
from voxtrain.settings import Settings, compose


def plan_work(settings: Settings, rows: Sequence[Row], folder: Path | None) -> Work:
    """What is trained, on the longest step that `rows` can make; without rows every one lasts `clean.max_seconds`.

    folder: of the model, whose tokenizer counts the tokens of the longest texts; None: they are counted from above.
    """
    return Work(settings.model.architecture, settings.tuning.adapter_config(), _longest(settings, rows, folder))


def plan_memory(settings: Settings, work: Work, written: Sequence[int]) -> MemoryPlan:
    """The memory plan on the card of the settings, with the disk's peak in it. written: as for `plan_disk`."""
    disk = plan_disk(settings, written)
    return predict(work, settings.memory, disk.added_at_peak_bytes, settings.memory.card_gib())


def plan_disk(settings: Settings, written: Sequence[int] = ()) -> DiskPlan:
    """The bytes still to be written by a run that has the numbered checkpoints `written`."""
    due = set(settings.checkpoint.steps(settings.train.total_steps())) - set(written)
    return disk_plan(
        settings.model.architecture,
        settings.tuning.adapter_config(),
        checkpoints=len(due),
        weights=settings.checkpoint.weights,
        stack=settings.memory,
        carried_bytes=0,  # companions are hard links
        states_standing=1 if written else 0,
    )


def _longest(settings: Settings, rows: Sequence[Row], folder: Path | None) -> Longest:
    architecture, train, limit = settings.model.architecture, settings.train, settings.clean.max_seconds
    kept = [row for row in rows if row.duration_s is None or row.duration_s <= limit]
    if not kept or any(row.duration_s is None for row in kept):
        return assumed_longest(architecture, limit, train.batch_size, train.grad_accum, settings.memory.max_positions)
    longest = longest_rows(architecture, kept, _tokens(folder), train.rows_per_step())
    rounds = math.ceil(train.rows_per_step() / len(longest))  # with few rows a step holds the longest several times
    step = sorted(longest * rounds, reverse=True)[: train.rows_per_step()]
    return longest_of(step, train.batch_size, settings.memory.max_positions)


def _tokens(folder: Path | None) -> Callable[[str], int] | None:
    if folder is None:
        return None
    from voxtrain.model.upstream import load_tokenizer

    tokenize = load_tokenizer(folder)
    return lambda text: len(tokenize(text))


def recipes_for_cards() -> list[str]:
    """The recipes that train on a GPU, by name."""
    return [name for name in known_options("recipe") if _recipe(name).trainer.accelerator == "cuda"]


def recipe_plans(names: Sequence[str], card_gib: float) -> Iterator[tuple[str, MemoryPlan]]:
    """Each recipe with its plan on a card, for rows of the longest clips that are allowed; some seconds for each."""
    for name in names:
        settings = _recipe(name)
        yield name, predict(plan_work(settings, [], None), settings.memory, 0, card_gib)


def _recipe(name: str) -> Settings:
    return compose(["data.manifest=none", f"+recipe={name}"])
