"""The second pass: every row to its file, a thousand rows in memory at a time.

Held-out rows come first, since the certificate must know them before training. Most rows share nothing with another
split, neither file, samples nor the beginning of the path: the certificate looks at their texts alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import compress, islice
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from voxtrain.durable import stream_whole
from voxtrain.manifest.decide import Split
from voxtrain.manifest.evidence import Evidence, reject_line, report_lines
from voxtrain.manifest.splitting.certificate import Certificate
from voxtrain.manifest.splitting.placing import NO_SPLIT
from voxtrain.progress import told
from voxtrain.run_folder import SPLITS, DataFolder

TRAIN = 0  # its place in SPLITS
BLOCK_ROWS = 1024  # held in memory at a time


def write_findings(folder: DataFolder, evidence: Evidence) -> None:
    """Write rejects.jsonl and reported.jsonl, in the order of the manifest."""
    rows = evidence.corpus.rows
    is_rejected, is_reported = rows["fired"] != 0, rows["reported"] != 0
    places = np.flatnonzero(is_rejected | is_reported)
    with stream_whole(folder.rejects) as rejects, stream_whole(folder.reported) as reported:
        for place, (record, told) in zip(places.tolist(), evidence.spool.some(places), strict=True):
            if is_rejected[place]:
                rejects.write(_line(reject_line(orjson.loads(record), evidence.rejects(place, told))))
            else:
                for line in report_lines(orjson.loads(record), evidence.reports(place, told)):
                    reported.write(_line(line))


def write_splits(folder: DataFolder, evidence: Evidence, split: Split, certificate: Certificate) -> None:
    """Write the kept rows of every split, in the order of the manifest, and show them to the certificate."""
    rows, names = evidence.corpus.rows, split.groups.names
    held = np.flatnonzero((split.places != TRAIN) & (split.places != NO_SPLIT))
    numbered = np.unique(split.groups.codes[held[rows["stem"][held] != 0]])
    certificate.expect_numbered([names[code] for code in numbered.tolist()])
    passing = _Passing(evidence, split, certificate, _meets(rows, split.places))
    with ExitStack() as files:
        parts = [files.enter_context(stream_whole(folder.rows(name))) for name in SPLITS]
        for _ in passing.blocks(held, parts):
            pass
        training = np.flatnonzero(split.places == TRAIN)
        blocks = -(-len(training) // BLOCK_ROWS)
        for _ in told(passing.blocks(training, parts), blocks, "writing the splits"):
            pass


class _Passing:
    """Passes rows on to the files of their splits and to the certificate."""

    def __init__(
        self, evidence: Evidence, split: Split, certificate: Certificate, meets: npt.NDArray[np.bool_]
    ) -> None:
        self._evidence, self._split, self._certificate, self._meets = evidence, split, certificate, meets
        self._ends = _Ends(split.groups.names)

    def blocks(self, places: npt.NDArray[np.int64], files: Sequence[BinaryIO]) -> Iterator[None]:
        """Some rows, block by block. places: ascending; all of training, or none."""
        records = self._evidence.spool.some(places)
        for first in range(0, len(places), BLOCK_ROWS):
            block = places[first : first + BLOCK_ROWS]
            codes, splits = self._split.groups.codes[block].tolist(), self._split.places[block]
            ends = map(self._ends.__getitem__, codes)
            lines = [record[:-1] + end for (record, _), end in zip(islice(records, len(block)), ends, strict=True)]
            for place in np.unique(splits).tolist():
                files[place].writelines(compress(lines, (splits == place).tolist()))
            self._show(lines, splits, self._meets[block])
            yield

    def _show(self, lines: Sequence[bytes], splits: npt.NDArray[np.uint8], meets: npt.NDArray[np.bool_]) -> None:
        certificate = self._certificate
        if splits[0] == TRAIN and not meets.any() and not certificate.looks_at_all:
            certificate.pass_over(len(lines))
            return
        rows = orjson.loads(b"[" + b",".join(lines) + b"]")
        for place in np.unique(splits).tolist():
            name, own = SPLITS[place], splits == place
            certificate.add_apart(name, list(compress(rows, (own & ~meets).tolist())))
            for row in compress(rows, (own & meets).tolist()):
                certificate.add(name, row)


class _Ends(dict[int, bytes]):
    """How the line of a row ends, by the code of its group."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, code: int) -> bytes:
        end = self[code] = b',"group":' + orjson.dumps(self._names[code]) + b"}\n"
        return end


def _meets(rows: npt.NDArray[Any], places: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """[N] which rows may share file, samples or stem with another split; equal hashes may say so of too many."""
    found = np.zeros(len(rows), dtype=bool)
    is_decoded = not np.isnan(rows["rms_dbfs"]).all()  # else `same_1` stands for the text, which is compared elsewhere
    for name in ("path", "stem", "same_1") if is_decoded else ("path", "stem"):
        values = rows[name]
        of_each = [np.unique(values[places == place]) for place in range(len(SPLITS))]
        distinct, splits = np.unique(np.concatenate(of_each), return_counts=True)
        found |= np.isin(values, distinct[(splits > 1) & (distinct != 0)])
    return found


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
