"""A row of a manifest: one clip and its transcript, as every later room sees it.

`read_manifest` trusts nothing. What makes the whole file unusable (a broken line, an absent column, an id given
twice) is an InputError with every line; what is wrong with one row alone is kept in `Row.odd` for the rules to reject.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.formats import Record, records

SHOWN_FAULTS = 10
SHOWN_LETTERS = 200
NEEDED = ("audio", "text")


@dataclass(frozen=True, slots=True)
class Row:
    """One clip and its transcript.

    odd: (column, value) of what cannot be used; the value is None where the manifest has null, else its JSON.
    An odd column holds an empty text or path, which nothing but the rules may look at; kept rows have none.
    """

    id: str  # unique in the manifest; by default a hash of the relative path and the text
    audio: Path  # absolute
    text: str  # NFC
    line: int  # 1-based, in the source
    group: str  # what is split: rows of one group never lie in two splits
    duration_s: float | None  # of a kept row: from the audio header
    parent: str | None
    speaker: str | None
    ref_audio: Path | None  # absolute
    odd: tuple[tuple[str, str | None], ...] = ()

    def to_record(self, group_by: str | None = None) -> dict[str, Any]:
        """What stands in the split files; the group also under the name of its own column."""
        record: dict[str, Any] = {
            "id": self.id,
            "audio": str(self.audio),
            "text": self.text,
            "duration": self.duration_s,
            "group": self.group,
            "line": self.line,
        }
        given = {"parent": self.parent, "speaker": self.speaker, "ref_audio": self.ref_audio}
        record |= {name: str(value) for name, value in given.items() if value is not None}
        if group_by is not None:
            record.setdefault(group_by, self.group)
        return record

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """The row of one line of a split file."""
        reference = record.get("ref_audio")
        return cls(
            id=record["id"],
            audio=Path(record["audio"]),
            text=record["text"],
            line=record["line"],
            group=record["group"],
            duration_s=record["duration"],
            parent=record.get("parent"),
            speaker=record.get("speaker"),
            ref_audio=None if reference is None else Path(reference),
        )


def read_manifest(path: Path, group_by: str) -> list[Row]:
    """Every row of a manifest, in its order. Relative audio paths start at the manifest.

    Raises InputError with all that is wrong with the file: broken lines, columns that no row has, repeated ids.
    """
    path = path.expanduser().absolute()
    rows: list[Row] = []
    broken: list[tuple[int, str]] = []
    columns: set[str] = set()
    lines: dict[str, list[int]] = defaultdict(list)  # of each id
    said_ids: set[str] = set()  # those that a row gives itself; ids of identical rows agree, and rules find those
    for line, record in records(path):
        if isinstance(record, str):
            broken.append((line, record))
            continue
        columns.update(record)
        row, said = _row(record, line, path.parent, group_by)
        lines[row.id].append(line)
        if said:
            said_ids.add(row.id)
        rows.append(row)
    faults = _broken_lines(path, broken)
    if not rows and not broken:
        faults.append(Fault(str(path), "the manifest has no rows", "write one row per clip, with `audio` and `text`"))
    if rows:
        faults += _absent_columns(path, group_by, columns)
        faults += _repeated_ids(path, {name: at for name, at in lines.items() if len(at) > 1 and name in said_ids})
    if faults:
        raise InputError(*faults)
    return rows


def _row(record: Record, line: int, folder: Path, group_by: str) -> tuple[Row, bool]:
    """The row of a record, and whether the record names its id itself."""
    odd: list[tuple[str, str | None]] = []
    text = unicodedata.normalize("NFC", _string(record, "text", odd))
    audio = _string(record, "audio", odd)
    reference = None if record.get("ref_audio") in (None, "") else _string(record, "ref_audio", odd)
    group = _label(record.get(group_by))
    if group is None:
        odd.append(("group", _shown(record.get(group_by))))
    said = _label(record.get("id"))
    if said is None and record.get("id") not in (None, ""):
        odd.append(("id", _shown(record["id"])))
    row = Row(
        id=said or _default_id(audio, text, folder),
        audio=folder / audio,
        text=text,
        line=line,
        group=group or "",
        duration_s=_seconds(record.get("duration")),
        parent=_label(record.get("parent")),
        speaker=_label(record.get("speaker")),
        ref_audio=folder / reference if reference else None,
        odd=tuple(odd),
    )
    return row, said is not None


def _string(record: Record, column: str, odd: list[tuple[str, str | None]]) -> str:
    """Its text; empty, and odd, where it is null or no text. An empty path is as good as null."""
    value = record.get(column)
    if isinstance(value, str) and (value or column == "text") and _is_unicode(value):
        return value
    odd.append((column, _shown(value)))
    return ""


def _label(value: Any) -> str | None:
    """A name as text; numbers stand for themselves (tables turn 17 into 17.0 where a cell is empty)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and _is_unicode(value):
        return unicodedata.normalize("NFC", value).strip() or None
    return None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None


def _is_unicode(value: str) -> bool:
    """Whether it can be written: JSON may escape half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str | None:
    """A value that cannot be used, as a reader of rejects.jsonl sees it; None for null, also where a table says NaN."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return json.dumps(value, default=repr)[:SHOWN_LETTERS]  # in ASCII: lone surrogates come out escaped


def _default_id(audio: str, text: str, folder: Path) -> str:
    """64 bits of a hash of the path as seen from the manifest and the text: moving the folder changes no id."""
    path = Path(audio)
    relative = path.relative_to(folder) if path.is_relative_to(folder) else path
    return hashlib.sha256(f"{relative.as_posix()}\0{text}".encode()).hexdigest()[:16]


def _broken_lines(path: Path, broken: list[tuple[int, str]]) -> list[Fault]:
    faults = [Fault(f"{path}:{line}", why, "mend the line, or leave it out") for line, why in broken[:SHOWN_FAULTS]]
    rest = [line for line, _ in broken[SHOWN_FAULTS:]]
    if rest:
        faults.append(Fault(str(path), f"{len(rest)} more lines are broken: {_listed(rest)}", "mend them too"))
    return faults


def _listed(lines: list[int]) -> str:
    shown = ", ".join(str(line) for line in lines[: 5 * SHOWN_FAULTS])
    return shown + (", ..." if len(lines) > 5 * SHOWN_FAULTS else "")


def _absent_columns(path: Path, group_by: str, columns: set[str]) -> list[Fault]:
    faults = []
    for column in NEEDED:
        if column not in columns:
            what = f"no row has the column `{column}`; there are: {', '.join(sorted(columns)) or 'none'}"
            faults.append(Fault(str(path), what, f"rename the column that holds it to `{column}`"))
    if group_by not in columns:
        what = f"no row has this column. {_what_groups(path)}"
        remedy = "data.group_by=COLUMN, or add a column that names the recording that a clip was cut from"
        faults.append(Fault(f"data.group_by = {group_by}", what, remedy))
    return faults


def _repeated_ids(path: Path, repeated: dict[str, list[int]]) -> list[Fault]:
    remedy = "give each row its own id, or leave the column out: ids are then made from path and text"
    faults = []
    for name, at in list(repeated.items())[:SHOWN_FAULTS]:
        faults.append(Fault(f"{path}:{at[1]}", f"the id {name!r} stands on several lines: {_listed(at)}", remedy))
    if len(repeated) > SHOWN_FAULTS:
        faults.append(Fault(str(path), f"{len(repeated) - SHOWN_FAULTS} more ids stand on several lines", remedy))
    return faults


def _what_groups(path: Path) -> str:
    """The columns that could be grouped by, with their numbers of groups, fewest first."""
    count = 0
    values: dict[str, set[str]] = defaultdict(set)
    for _, record in records(path):
        if isinstance(record, dict):
            count += 1
            for name, value in record.items():
                if name not in (*NEEDED, "id", "duration", "ref_audio") and (label := _label(value)) is not None:
                    values[name].add(label)
    fit = sorted((len(found), name) for name, found in values.items() if 1 < len(found) < count)
    if not fit:
        return "No other column has values that some rows share and others do not."
    offered = ", ".join(f"{name} ({groups} groups)" for groups, name in fit)
    return f"It could be, of {count} rows: {offered}."
