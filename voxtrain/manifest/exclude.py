"""Rows that the user wants left out: `clean.exclude`, a JSONL file whose lines have an `id`, such as outliers."""

from __future__ import annotations

from pathlib import Path

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.formats import JsonLines
from voxtrain.manifest.splitting.group import label

SHOWN_FAULTS = 10


def read_exclude(path: Path | None) -> dict[str, str]:
    """Where each id is listed: the file's name and the line. Raises InputError for a file that is no such list."""
    if path is None:
        return {}
    where, remedy = f"clean.exclude = {path}", "name a JSONL file whose lines have the `id` of a row"
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise InputError(Fault(where, f"the list cannot be read: {error.strerror or error}", remedy)) from None
    listed: dict[str, str] = {}
    faults = []
    for line, record in JsonLines(1, data, 1.0).lines():
        name = None if isinstance(record, str) else label(record.get("id"))
        if name is not None:
            listed.setdefault(name, f"{path.name}:{line}")
        else:
            what = record if isinstance(record, str) else "the line has no `id`"
            faults.append(Fault(f"{path}:{line}", what, remedy))
    if len(faults) > SHOWN_FAULTS:
        rest = len(faults) - SHOWN_FAULTS
        faults[SHOWN_FAULTS:] = [Fault(where, f"{rest} more of its lines cannot be used", remedy)]
    if faults:
        raise InputError(*faults)
    return listed
