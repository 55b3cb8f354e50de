"""A row of a manifest: one clip and its transcript, as every later room sees it.

`RowReader` trusts nothing: what is wrong with one row alone is kept in `Row.odd` for the rules to reject. Paths are
text here and become Path objects when somebody asks: to make a million of them takes as long as most of the rules.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from voxtrain.manifest.columns import Columns, renamed
from voxtrain.manifest.formats import Record
from voxtrain.manifest.splitting.group import Grouping, label

SHOWN_LETTERS = 200


@dataclass(slots=True, unsafe_hash=True)  # not `frozen`: that takes seven times as long to make; nobody changes a row
class Row:
    """One clip and its transcript.

    odd: (column, value) of what cannot be used; the value is None where the manifest has null, else its JSON.
    An odd column holds an empty text or path, which nothing but the rules may look at; of kept rows only a null text is
    odd, and only where the rules let it pass.
    """

    id: str  # unique in the manifest; by default a hash of the relative path and the text
    audio_path: str  # absolute
    text: str  # NFC
    line: int  # 1-based, in the source
    group: str  # what is split: rows of one group never lie in two splits
    duration_s: float | None  # as the manifest says; of a kept row: from the audio header
    parent: str | None
    speaker: str | None
    ref_audio_path: str | None  # absolute
    odd: tuple[tuple[str, str | None], ...] = ()
    samples: str | None = None  # digest of the decoded samples, where they were decoded
    ref_samples: str | None = None  # the same of the reference audio

    @property
    def audio(self) -> Path:
        """The clip, absolute."""
        return Path(self.audio_path)

    @property
    def ref_audio(self) -> Path | None:
        """The reference audio, absolute."""
        return None if self.ref_audio_path is None else Path(self.ref_audio_path)

    def to_record(self) -> dict[str, Any]:
        """What stands in the split files."""
        record: dict[str, Any] = {
            "id": self.id,
            "audio": self.audio_path,
            "text": self.text,
            "duration": self.duration_s,
            "line": self.line,
            "group": self.group,
        }
        if self.parent is not None:
            record["parent"] = self.parent
        if self.speaker is not None:
            record["speaker"] = self.speaker
        if self.samples is not None:
            record["samples"] = self.samples
        if self.ref_audio_path is not None:
            record["ref_audio"] = self.ref_audio_path
            if self.ref_samples is not None:
                record["ref_samples"] = self.ref_samples
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The row of one line of a split file."""
        return cls(
            id=record["id"],
            audio_path=record["audio"],
            text=record["text"],
            line=record["line"],
            group=record["group"],
            duration_s=record["duration"],
            parent=record.get("parent"),
            speaker=record.get("speaker"),
            ref_audio_path=record.get("ref_audio"),
            samples=record.get("samples"),
            ref_samples=record.get("ref_samples"),
        )


class ReadRow(NamedTuple):
    """A row as it was read, before any audio is looked at."""

    row: Row
    labels: tuple[str, ...] | None  # what it is grouped by; None: nothing
    names_itself: bool  # the manifest gives its id


class RowReader:
    """Records of one manifest to rows. Relative paths start in `folder`, which is absolute."""

    def __init__(self, folder: Path, columns: Columns, grouping: Grouping) -> None:
        self._folder, self._grouping = folder, grouping
        self._prefix = f"{str(folder).rstrip('/')}/"
        self._other_names = columns.other_names()

    def read(self, record: Record, line: int) -> ReadRow:
        """The row of one record, whatever it holds."""
        if self._other_names:
            record = renamed(record, self._other_names)
        odd: list[tuple[str, str | None]] = []
        text = record.get("text")
        if type(text) is not str or not text.isascii():
            text = unicodedata.normalize("NFC", _string(record, "text", odd))
        audio = _string(record, "audio", odd)
        reference = record.get("ref_audio")
        if reference is not None and reference != "":
            reference = _string(record, "ref_audio", odd)
        said = label(record.get("id"))
        if said is None and record.get("id") not in (None, ""):
            odd.append(("id", _shown(record["id"])))
        path, relative = self._places(audio)
        id = said or hashlib.sha256(f"{relative}\0{text}".encode()).hexdigest()[:16]
        labels = self._grouping.labels(record, audio, id)
        if labels is None:
            columns = self._grouping.columns
            odd.append(("group", _shown(record.get(columns[0])) if columns else None))
        row = Row(
            id,
            path,
            text,
            line,
            next(filter(None, labels)) if labels else "",
            _seconds(record.get("duration")),
            label(record.get("parent")),
            label(record.get("speaker")),
            self._places(reference)[0] if reference else None,
            tuple(odd),
        )
        return ReadRow(row, labels, said is not None)

    def _places(self, path: str) -> tuple[str, str]:
        """An absolute path, and the same as seen from the manifest where it lies beneath it.

        Only the second is in the default id: moving the folder changes no id.
        """
        if path and "//" not in path and "/." not in path and path[0] != "." and path[-1] != "/":  # as nearly always
            if path[0] != "/":
                return self._prefix + path, path
            return path, path.removeprefix(self._prefix)
        if not path:
            return "", "."
        whole = Path(path)
        relative = whole.relative_to(self._folder) if whole.is_relative_to(self._folder) else whole
        return str(self._folder / path), relative.as_posix()


def _string(record: Record, column: str, odd: list[tuple[str, str | None]]) -> str:
    """Its text; empty, and odd, where it is null or no text. An empty path is as good as null."""
    value = record.get(column)
    if isinstance(value, str) and (value or column == "text") and _is_unicode(value):
        return value
    odd.append((column, _shown(value)))
    return ""


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None


def _is_unicode(value: str) -> bool:
    """Whether it can be written: JSON may escape half of a surrogate pair."""
    if value.isascii():
        return True
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
