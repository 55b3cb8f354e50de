"""The job of a worker: some raw lines of a manifest in; out, what every rule that looks at one row alone says of them.

What the main process needs to decide about the whole is a few dozen numbers a row (`ROW`); the rest, the record of the
row and what was found in it, goes to a file as JSON and is read again when the decisions are made.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from voxtrain.manifest.clean import EXCLUDED, CleanRules, findings
from voxtrain.manifest.columns import Columns
from voxtrain.manifest.formats import Chunk
from voxtrain.manifest.judged import PACKED, PLACE_OF_SCRIPT, ROW, Judged, packed_findings
from voxtrain.manifest.recall import Chunks
from voxtrain.manifest.row import ReadRow, RowReader
from voxtrain.manifest.rules import Candidate, Finding
from voxtrain.manifest.scripts import spoken
from voxtrain.manifest.sound import NO_FILE, Samples, Sound
from voxtrain.manifest.sounds import Heard, Sounds
from voxtrain.manifest.splitting.crossing import numbered
from voxtrain.manifest.splitting.group import NO_GROUP, Grouping

NAN = float("nan")
UNHEARD = (NAN, NAN, NAN, NAN)
MASK = 2**64 - 1
DEVICE_STRIDE = 0x9E3779B97F4A7C15  # odd and large: devices, which have small numbers, shift a hash far
NOT_HEARD = Heard(NO_FILE, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker must know of the manifest and the settings."""

    folder: Path  # of the manifest, absolute
    columns: Columns
    grouping: Grouping
    clean: CleanRules
    excluded: Mapping[str, str]  # by id: where it is said
    memory: Path | None  # the database of sounds
    chunks: Path | None  # the database of chunks judged before

    def basis(self) -> bytes:
        """All that rows are judged by, besides what they say and the files that they name."""
        named = (self.columns.model_dump(), self.grouping.value, self.clean.model_dump(mode="json"))
        return orjson.dumps([str(self.folder), *named, sorted(self.excluded.items())], option=orjson.OPT_SORT_KEYS)


class Looked(NamedTuple):
    """What a chunk says."""

    read: list[ReadRow]
    paths: list[str]  # of audio files
    broken: list[tuple[int, str]]
    columns: set[str]


class Judge:
    """Judges chunks, one after the other."""

    def __init__(self, job: Job, memory: Sounds) -> None:
        self._job, self._memory = job, memory
        self._chunks = Chunks(job.chunks, job.basis())
        self._ahead: deque[tuple[Chunk, Judged | Looked]] = deque()
        self._reader = RowReader(job.folder, job.columns, job.grouping)
        self._rules, self._reports = job.clean.row_rules(), job.clean.reports()
        self._bit = {name: 1 << place for place, name in enumerate(job.clean.rule_names())}
        self._report_bit = {rule.name: 1 << place for place, rule in enumerate(self._reports)}

    def work_alone(self) -> None:
        """Use one thread from now on."""
        self._memory.read_alone()

    def close(self) -> None:
        """Let go of the databases."""
        self._memory.close()
        self._chunks.close()

    def look_ahead(self, chunk: Chunk) -> None:
        """Read a chunk that will be judged later, in the same order, and begin to decode its audio."""
        self._ahead.append((chunk, self._looked(chunk, only_read=False)))

    def judge(self, chunk: Chunk, only_read: bool) -> Judged:
        """What becomes of the rows of a chunk. only_read: the file is unusable already, so no audio is looked at."""
        if self._ahead and self._ahead[0][0] is chunk:
            looked = self._ahead.popleft()[1]
        else:
            looked = self._looked(chunk, only_read)
        return looked if isinstance(looked, Judged) else self._judged(chunk, looked, only_read)

    def _looked(self, chunk: Chunk, only_read: bool) -> Judged | Looked:
        """What is recalled of a chunk, or what it says."""
        recalled = None if only_read else self._chunks.recall(chunk)
        if recalled is not None:
            rows, spool, labels, codes, columns, excluded = recalled
            table = np.frombuffer(rows, dtype=ROW)
            return Judged(table, spool, labels, codes, [], columns, excluded, [], None, False, chunk.done)
        lines = chunk.lines()
        read = [self._reader.read(record, line) for line, record in lines if type(record) is dict]
        paths = _paths(read)
        if not only_read:
            self._memory.begin(paths)
        broken = [(line, record) for line, record in lines if type(record) is str]
        columns = set[str]().union(*{tuple(record) for _, record in lines if type(record) is dict})
        return Looked(read, paths, broken, columns)

    def _judged(self, chunk: Chunk, looked: Looked, only_read: bool) -> Judged:
        read, paths, broken, columns = looked
        heard = {} if only_read else self._memory.hear(paths)
        table, spool, excluded = bytearray(), bytearray(), set[str]()
        for one in read:
            table += self._row(one, heard, spool, excluded)
        labels, codes = _coded(read, self._job.grouping.width)
        fresh, self._memory.fresh = self._memory.fresh, []
        rows = np.frombuffer(bytes(table), dtype=ROW)
        broke = self._memory.is_broken
        judged = Judged(rows, bytes(spool), labels, codes, broken, columns, excluded, fresh, None, broke, chunk.done)
        return judged if only_read else replace(judged, kept=self._chunks.kept(chunk, judged, paths, heard))

    def _row(self, read: ReadRow, heard: Mapping[str, Heard], spool: bytearray, excluded: set[str]) -> bytes:
        """The numbers of a row, packed; what is to be read again goes to the spool."""
        row = read.row
        own = heard.get(row.audio_path, NOT_HEARD)
        reference = None if row.ref_audio_path is None else heard.get(row.ref_audio_path, NOT_HEARD).sound
        candidate = Candidate(row, own.sound, reference)
        rejects = findings(self._rules, candidate)
        if row.id in self._job.excluded:
            rejects[EXCLUDED] = Finding(self._job.excluded[row.id])
            excluded.add(row.id)
        reports = {} if rejects else findings(self._reports, candidate)
        record = self._record(read, own.sound, reference)
        told = packed_findings(rejects, reports) if rejects or reports else b""
        spool += record
        spool += told
        seconds, samples = own.sound.duration_s, own.sound.samples
        text, (script, characters) = hash_of(row.text.strip()), spoken(row.text)
        same_1, same_2 = _same(own, text) if row.audio_path else (0, 0)
        return PACKED.pack(
            row.line,
            sum([self._bit[name] for name in rejects]) if rejects else 0,
            sum([self._report_bit[name] for name in reports]) if reports else 0,
            NAN if seconds is None else seconds,
            hash_of(row.id),
            same_1,
            same_2,
            text,
            own.key,
            _stem(row.audio_path),
            len(record),
            len(told),
            PLACE_OF_SCRIPT[script],
            read.names_itself,
            characters,
            *(UNHEARD if samples is None else _measures(samples)),
        )

    def _record(self, read: ReadRow, own: Sound, reference: Sound | None) -> bytes:
        """What will stand in a split file if the row is kept; the group is put in when it is known."""
        row = read.row
        record: dict[str, Any] = {
            "id": row.id,
            "audio": row.audio_path,
            "text": row.text,
            "duration": own.duration_s,
            "line": row.line,
        }
        if row.parent is not None:
            record["parent"] = row.parent
        if row.speaker is not None:
            record["speaker"] = row.speaker
        if own.samples is not None:
            record["samples"] = own.samples.digest
        if row.ref_audio_path is not None:
            record["ref_audio"] = row.ref_audio_path
            if reference is not None and reference.samples is not None:
                record["ref_samples"] = reference.samples.digest
        if read.labels is not None:
            for column, name in zip(self._job.grouping.columns, read.labels, strict=False):
                record.setdefault(column, name)
        return orjson.dumps(record)


def _paths(read: list[ReadRow]) -> list[str]:
    """Every file that the rows name; an odd path names none."""
    paths = [one.row.audio_path for one in read if one.row.audio_path]
    return paths + [one.row.ref_audio_path for one in read if one.row.ref_audio_path]


def _coded(read: list[ReadRow], width: int) -> tuple[list[list[str]], npt.NDArray[np.int32]]:
    """For each column grouped by: its labels in these rows, and of every row the place of its own among them."""
    known: list[dict[str, int]] = [{} for _ in range(width)]
    codes = np.full((width, len(read)), NO_GROUP, dtype=np.int32)
    for labels, column, place in zip(known, codes, range(width), strict=True):
        names = [one.labels[place] if one.labels is not None else "" for one in read]
        column[:] = [labels.setdefault(name, len(labels)) if name else NO_GROUP for name in names]
    return [list(labels) for labels in known], codes


def _same(own: Heard, text: int) -> tuple[int, int]:
    """Equal for rows whose samples are; where they were not decoded, for rows of the same file and text."""
    if own.sound.samples is not None:
        digest = own.sound.samples.digest
        return int(digest[:16], 16), int(digest[16:], 16)
    return (text + own.device * DEVICE_STRIDE) & MASK, own.number & MASK


def _stem(path: str) -> int:
    """32 bits of a hash are enough where equal ones are looked into."""
    stem, digits = numbered(path)
    return zlib.crc32(stem.encode()) if digits else 0


def _measures(samples: Samples) -> tuple[float, float, float, float]:
    return samples.rms_dbfs, samples.peak, samples.leading_silence_s, samples.tail_silence_s


def hash_of(text: str) -> int:
    """64 bits that are the same in every process."""
    return xxhash.xxh3_64_intdigest(text.encode())
