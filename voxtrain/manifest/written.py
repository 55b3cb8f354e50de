"""The second pass: every row to its file, one row in memory at a time.

Held-out rows come first, since the certificate must know them before training. Most rows of training share nothing with
them, neither file, samples nor the beginning of the path: those are copied to train.jsonl without being parsed.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from voxtrain.durable import stream_whole
from voxtrain.manifest.certificate import Certificate
from voxtrain.manifest.decide import Split
from voxtrain.manifest.evidence import Evidence, reject_line, report_lines
from voxtrain.manifest.progress import told
from voxtrain.run_folder import SPLITS, DataFolder

TRAIN = 0  # its place in SPLITS
BLOCK_ROWS = 8192  # between two looks at the clock


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
    with ExitStack() as files:
        parts = [files.enter_context(stream_whole(folder.rows(name))) for name in SPLITS]
        held = np.flatnonzero((split.places != TRAIN) & evidence.corpus.kept())
        for place, (record, _) in zip(held.tolist(), evidence.spool.some(held), strict=True):
            whole = orjson.loads(record)
            whole["group"] = split.groups.names[split.groups.codes[place]]
            certificate.add(SPLITS[split.places[place]], whole)
            parts[split.places[place]].write(_line(whole))
        _write_training(parts[TRAIN], evidence, split, certificate, held)


def _write_training(
    file: BinaryIO, evidence: Evidence, split: Split, certificate: Certificate, held: npt.NDArray[np.int64]
) -> None:
    names, places = split.groups.names, np.flatnonzero(split.places == TRAIN)
    shown = (
        np.ones(len(places), dtype=bool) if certificate.looks_at_all else _may_meet(evidence.corpus.rows, places, held)
    )
    codes = split.groups.codes[places].tolist()
    ends: dict[int, bytes] = {}  # of the line, by group
    rows = zip(codes, shown.tolist(), evidence.spool.some(places), strict=True)
    blocks = -(-len(places) // BLOCK_ROWS)
    for block in told((islice(rows, BLOCK_ROWS) for _ in range(blocks)), blocks, "writing the splits"):
        for code, show, (record, _) in block:
            end = ends.get(code)
            if end is None:
                end = ends[code] = b',"group":' + orjson.dumps(names[code]) + b"}\n"
            file.write(record[:-1] + end)
            if show:
                whole = orjson.loads(record)
                whole["group"] = names[code]
                certificate.add(SPLITS[TRAIN], whole)
    certificate.pass_over(SPLITS[TRAIN], len(places) - int(shown.sum()))


def _may_meet(
    rows: npt.NDArray[Any], places: npt.NDArray[np.int64], held: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """[places] which rows of training may share something with held-out rows; equal hashes may say so of too many."""
    found = np.zeros(len(places), dtype=bool)
    for name in ("path", "stem", "same_1"):
        values = rows[name][held]
        found |= np.isin(rows[name][places], values[values != 0])
    return found


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
