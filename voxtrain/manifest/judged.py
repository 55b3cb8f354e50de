"""What becomes of a chunk of a manifest: a few dozen numbers a row (`ROW`), and the rest as JSON for the spool."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from voxtrain.manifest.rules import Finding
from voxtrain.manifest.scripts import SCRIPTS
from voxtrain.manifest.sounds import Remembered

FIELDS = (
    ("line", "q"),
    ("fired", "Q"),  # a bit for each of CleanRules.rule_names()
    ("reported", "Q"),  # a bit for each of CleanRules.reports(), and one for a rare script
    ("seconds", "d"),  # NaN: it cannot be opened
    ("id", "Q"),  # 64 bits of a hash
    ("same_1", "Q"),  # the two are equal for rows that say and sound the same; both 0: nothing can be said
    ("same_2", "Q"),
    ("text", "Q"),  # 64 bits of a hash
    ("path", "Q"),  # likewise, of the audio file
    ("stem", "I"),  # a hash of the path without its last number; 0: it has none
    ("record_bytes", "I"),  # in the spool
    ("found_bytes", "I"),  # in the spool, after the record
    ("script", "B"),  # place in WRITTEN
    ("names_itself", "?"),  # the manifest gives the id
    ("characters", "f"),  # that are spoken
    ("rms_dbfs", "f"),  # NaN: not decoded
    ("peak", "f"),
    ("leading_silence_s", "f"),
    ("tail_silence_s", "f"),
)
PACKED = struct.Struct("<" + "".join(kind for _, kind in FIELDS))
ROW = np.dtype([(name, f"<{np.dtype(kind).str[1:]}") for name, kind in FIELDS])
assert PACKED.size == ROW.itemsize
WRITTEN = tuple(dict.fromkeys(("none", *SCRIPTS)))
PLACE_OF_SCRIPT = {name: place for place, name in enumerate(WRITTEN)}

Found = dict[str, Finding]
Kept = tuple[bytes, bytes]
"""A chunk as it is remembered: name and content."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of a chunk."""

    rows: npt.NDArray[Any]  # [rows] of ROW
    spool: bytes  # record and findings of every row, one after the other
    labels: list[list[str]]  # for each column grouped by, its labels in these rows
    codes: npt.NDArray[np.int32]  # [columns, rows] places in `labels`, NO_GROUP where a row has none
    broken: list[tuple[int, str]]  # line and reason
    columns: set[str]  # that any row has
    excluded: set[str]  # ids that rows have
    fresh: list[Remembered]
    kept: Kept | None  # what to remember of the chunk as a whole
    memory_is_broken: bool
    done: float  # share of the file that lies before the end of the chunk


def packed_findings(rejects: Found, reports: Found) -> bytes:
    """What was found, as `told_findings` reads it."""
    both = [[[name, one.value, one.threshold] for name, one in found.items()] for found in (rejects, reports)]
    return orjson.dumps(both, option=orjson.OPT_SERIALIZE_NUMPY)


def told_findings(told: bytes) -> tuple[Found, Found]:
    """What was found against a row: rejects, reports."""
    if not told:
        return {}, {}
    rejects, reports = ({name: Finding(value, limit) for name, value, limit in found} for found in orjson.loads(told))
    return rejects, reports
