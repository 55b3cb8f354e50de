"""Votes of blind comparisons, as the listening page hands them out: read, checked, kept, counted. Imports no torch.

A sitting is one listener's comparison of two checkpoints; its file can be handed in again, complete or with more
votes, and counts once. A vote is about two samples: it holds as long as they are those that were heard.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError

from voxtrain.durable import read_log_rows, write_json
from voxtrain.fault import Fault, InputError
from voxtrain.run_folder import RunFolder
from voxtrain.statistics.binomial import interval, p_value_of_half
from voxtrain.validation.evidence import LEVEL

FORMAT = "voxtrain blind votes 1"
REMEDY = "hand in the file that the listening page of this run gives, at the end of a blind comparison"


class Vote(BaseModel, frozen=True, extra="forbid"):
    """Between two samples of the same text with the same seed."""

    text_id: str
    take: PositiveInt
    voice: str
    a: NonNegativeInt  # the step of the sample that was called A
    b: NonNegativeInt
    preferred: NonNegativeInt | None  # a step; null: no difference was heard


class Sitting(BaseModel, frozen=True, extra="forbid"):
    """One file."""

    format: Literal["voxtrain blind votes 1"]
    run: str
    sitting: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    steps: Annotated[dict[NonNegativeInt, str], Field(min_length=2, max_length=2)]  # what stands for their samples
    shuffle_seed: NonNegativeInt
    votes: Annotated[tuple[Vote, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Comparison:
    """All votes between two checkpoints."""

    steps: tuple[int, int]  # ascending
    preferred: tuple[int, int]  # votes for each
    undecided: int
    sittings: int

    def share(self, step: int) -> tuple[float, float, float]:
        """The share of decided votes for `step`, and its exact interval."""
        mine, decided = self.preferred[self.steps.index(step)], sum(self.preferred)
        return mine / decided if decided else 0.5, *interval(mine, decided, LEVEL)

    def to_record(self) -> dict[str, Any]:
        """As it stands in selection.json; the share is that of the later step."""
        share, low, high = self.share(self.steps[1])
        votes = {str(step): votes for step, votes in zip(self.steps, self.preferred, strict=True)}
        return {
            "steps": list(self.steps),
            "preferred": votes,
            "undecided": self.undecided,
            "sittings": self.sittings,
            "share_of_later": share,
            "low": low,
            "high": high,
            "p_value": p_value_of_half(self.preferred[0], sum(self.preferred)),
        }


def samples_key(records: Iterable[Mapping[str, Any]]) -> str:
    """What stands for all samples of one checkpoint: lines of listening.csv, in any order."""
    parts = sorted("\0".join(str(r[name]) for name in ("text_id", "voice", "seed", "made_from")) for r in records)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def take_votes(run: RunFolder, files: Sequence[Path]) -> list[Sitting]:
    """Check files of votes and keep them in the run folder: all or, where one is wrong, none.

    Raises InputError with every fault, for votes on another run or page too. Of a sitting the most votes stay.
    """
    samples = _samples(run)
    found: list[Sitting] = []
    faults: list[Fault] = []
    for file in files:
        try:
            found.append(sitting := read_sitting(file))
        except InputError as error:
            faults += error.faults
            continue
        if wrong := _mismatch(sitting, samples):
            faults.append(Fault(str(file), f"its votes are not about this run's samples: {wrong}", REMEDY))
    if faults:
        raise InputError(*faults)
    for sitting in found:
        _keep(run.votes / f"{sitting.sitting}.json", sitting)
    return found


def _keep(file: Path, sitting: Sitting) -> None:
    try:
        fewer = len(read_sitting(file).votes) <= len(sitting.votes)
    except InputError:  # none is kept yet, or what is kept cannot be read
        fewer = True
    if fewer:
        write_json(file, sitting.model_dump(mode="json"))


def read_sitting(file: Path) -> Sitting:
    """Read a file of votes. Raises InputError for one that cannot be read or contradicts itself."""
    try:
        sitting = Sitting.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # ValidationError and a broken JSON are ValueErrors
        raise InputError(Fault(str(file), f"these are no votes: {_first_words(error)}", REMEDY)) from None
    steps, said = set(sitting.steps), [(vote.text_id, vote.take, vote.voice) for vote in sitting.votes]
    if any({vote.a, vote.b} != steps or vote.preferred not in (None, *steps) for vote in sitting.votes):
        raise InputError(Fault(str(file), "a vote is about other checkpoints than the file", REMEDY))
    if len(set(said)) < len(said):
        raise InputError(Fault(str(file), "there are two votes about one pair of samples", REMEDY))
    return sitting


def comparisons(run: RunFolder) -> tuple[list[Comparison], list[str]]:
    """All votes that were handed in, by pair of checkpoints; and in words which no longer count."""
    samples, told = _samples(run), []
    pairs: dict[tuple[int, int], list[Sitting]] = defaultdict(list)
    for file in sorted(run.votes.glob("*.json")):
        try:
            sitting = read_sitting(file)
        except InputError as error:
            told.append(f"Blind votes cannot be counted: {error.faults[0].where}: {error.faults[0].what}")
            continue
        wrong = _mismatch(sitting, samples)
        if wrong:
            told.append(f"{len(sitting.votes)} blind votes no longer count: {wrong}")
        else:
            pairs[min(sitting.steps), max(sitting.steps)].append(sitting)
    return [_count(steps, sittings) for steps, sittings in sorted(pairs.items())], told


def _count(steps: tuple[int, int], sittings: list[Sitting]) -> Comparison:
    chosen = [vote.preferred for sitting in sittings for vote in sitting.votes]
    return Comparison(steps, (chosen.count(steps[0]), chosen.count(steps[1])), chosen.count(None), len(sittings))


def _samples(run: RunFolder) -> dict[int, list[dict[str, str]]]:
    found: dict[int, list[dict[str, str]]] = defaultdict(list)
    for record in read_log_rows(run.listening_table):
        found[int(record["step"])].append(record)
    return found


def _mismatch(sitting: Sitting, samples: Mapping[int, list[dict[str, str]]]) -> str:
    """Why the samples that were heard are not there; empty where they are."""
    gone = [step for step in sitting.steps if step not in samples]
    if gone:
        return f"it has no samples of step {gone[0]} (they were heard in the run {sitting.run})"
    other = [step for step, key in sitting.steps.items() if samples_key(samples[step]) != key]
    if other:
        return f"those of step {other[0]} are others than were heard (on the page of the run {sitting.run})"
    known = {(r["text_id"], int(r["seed"]), r["voice"]) for r in samples[next(iter(sitting.steps))]}
    strange = [vote.text_id for vote in sitting.votes if (vote.text_id, vote.take, vote.voice) not in known]
    return f"there is no sample {strange[0]}" if strange else ""


def _first_words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
