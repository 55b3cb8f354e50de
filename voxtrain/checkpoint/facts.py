"""What a resumable state says of itself, and whether its files still are what was written. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from voxtrain.checkpoint.digests import ALGORITHMS, STATE, digest_of
from voxtrain.durable import read_json
from voxtrain.fault import Fault, InputError
from voxtrain.run_folder import DataFolder, RunFolder

WEIGHTS, OPTIMIZER, OPTIMIZER_PLAIN, FACTS = (
    "weights.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "state.json",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Under what a run learns: stands in every step.json and state.json."""

    fingerprint: str  # of the settings that may not change
    fingerprint_without_course: str  # of the learning rate, which may by choice
    data: str | None  # sha256 of the training rows; None where the run has none
    versions: Mapping[str, str | None]  # of the packages that results depend on


@dataclass(frozen=True, slots=True)
class Facts:
    """state.json."""

    step: int
    rows_seen: int
    skipped: list[int]
    fingerprint: str
    fingerprint_without_course: str
    data: str | None
    versions: dict[str, str | None]
    voxtrain: str
    size_bytes: dict[str, int]  # of each file beside it
    xxh3_128: dict[str, str]  # likewise
    own_xxh3_128: str  # of everything above

    def digest(self) -> str:
        """What `own_xxh3_128` must be."""
        told = {name: value for name, value in asdict(self).items() if name != "own_xxh3_128"}
        return ALGORITHMS[STATE](json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_facts(run: RunFolder) -> Facts:
    """What the newest state says of itself. Raises InputError where there is none, or a file's size is another.

    Reads no content: `check_content` does.
    """
    steps = run.state_steps()
    if not steps:
        raise InputError(Fault(f"resume = {run.root}", "the run has saved no state to go on from", "start a new run"))
    folder = run.state(steps[-1])
    try:
        facts = Facts(**read_json(folder / FACTS))
        wrong = [name for name, size in facts.size_bytes.items() if (folder / name).stat().st_size != size]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(broken(folder, str(error))) from None
    if facts.digest() != facts.own_xxh3_128:
        wrong.append(FACTS)
    if wrong:
        raise InputError(broken(folder, f"{', '.join(wrong)} was cut short or changed"))
    return facts


def check_content(folder: Path, facts: Facts) -> None:
    """Raise InputError unless every file of the state is what was written, to the last bit."""
    try:
        wrong = [name for name, digest in facts.xxh3_128.items() if digest_of(folder / name, STATE) != digest]
    except OSError as error:
        raise InputError(broken(folder, str(error))) from None
    if wrong:
        raise InputError(broken(folder, f"{', '.join(wrong)} is not what was written (its checksum differs)"))


def check_origin(folder: Path, facts: Facts, origin: Origin, *, new_course: bool) -> list[str]:
    """Raise InputError when the state was learnt under other settings or from other rows.

    new_course: the learning rate may follow another course from here on. Returns what else is not as it was, in words:
    versions of packages, under which the rest may differ in its last bits.
    """
    faults = []
    same = facts.fingerprint_without_course == origin.fingerprint_without_course
    if not same or (facts.fingerprint != origin.fingerprint and not new_course):
        what = "it was saved under other settings than those in config.yaml (their fingerprints differ)"
        faults.append(Fault(str(folder), what, "restore config.yaml from a copy, or put the state of this run back"))
    if facts.data != origin.data:
        what = "it learnt from other rows than those in data/train.jsonl"
        faults.append(
            Fault(str(folder), what, "restore the folder data/ from a copy: rows may not change within a run")
        )
    if faults:
        raise InputError(*faults)
    names = sorted({*facts.versions, *origin.versions})
    pairs = [(name, facts.versions.get(name), origin.versions.get(name)) for name in names]
    return [f"{name} was {before or 'absent'}, is {now or 'absent'}" for name, before, now in pairs if before != now]


def rows_fingerprint(run: RunFolder) -> str | None:
    """The sha256 of the rows that a run learns from; None where it has none yet."""
    rows = DataFolder(run.data).rows("train")
    return digest_of(rows, "sha256") if rows.is_file() else None


def way_on(run: RunFolder) -> str:
    """How to go on where the disk failed a run: the end of a message."""
    mend = "Free some space, or see to it that the folder can be written, then"
    if run.state_steps():
        return f"What was saved before is untouched. {mend} go on with: python -m voxtrain resume={run.root}"
    return f"Nothing had been learnt yet. {mend} remove {run.root} and start again."


def broken(folder: Path, what: str) -> Fault:
    """The fault of a state that cannot be gone on from."""
    remedy = (
        "restore the folder from a copy, or start a new run (from a numbered checkpoint by model.path=..., which is "
        "not touched by this)"
    )
    return Fault(str(folder), f"the state cannot be read: {what}", remedy)
