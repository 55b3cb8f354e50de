"""Groups that the user pins to a held-out split, by a list in the settings or a file, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from rapidfuzz import fuzz, process

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.splitting.group import label

SHOWN_FAULTS = 10
CLOSE_MATCHES = 3
CLOSE_SCORE = 60.0  # of rapidfuzz, of 100: under it a suggestion misleads more often than it helps


def _listed(value: Any) -> Any:
    """A list of names as text, a string as a path; null as no list."""
    if value is None:
        return ()
    if isinstance(value, str | Path):
        if str(value) in ("", "."):
            raise ValueError("this names neither groups nor a file of them")
        return Path(value).expanduser().absolute()
    if not isinstance(value, list | tuple):
        raise ValueError("this is neither a list of groups ([one, two]) nor a file of them")
    names = [label(name) for name in value]
    if None in names:
        raise ValueError("a group is named by text or a whole number")
    return tuple(names)


Pinned = Annotated[tuple[str, ...] | Path, BeforeValidator(_listed)]
"""Names of groups, or a file of them: one a line, or JSONL (a name, or an object with `group`) where it ends so."""


def pinned_names(key: str, pinned: tuple[str, ...] | Path) -> tuple[str, ...]:
    """The names in their order. key: the setting, for messages. Raises InputError for a file that is no such list."""
    if isinstance(pinned, tuple):
        return pinned
    where = f"{key} = {pinned}"
    try:
        lines = pinned.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"the list cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(Fault(where, what, "name a list of groups, or a file with one a line")) from None
    is_json = pinned.suffix.lower() in (".jsonl", ".ndjson")
    names = [(place, _name(line, is_json)) for place, line in enumerate(lines, start=1) if line.strip()]
    broken = [
        Fault(f"{pinned}:{place}", "this line names no group", 'write "NAME" or {"group": "NAME"} on each line')
        for place, name in names
        if name is None
    ]
    if not names:
        broken.append(Fault(where, "the file names no group", "write one group a line, or leave the setting out"))
    if broken:
        raise InputError(*broken[:SHOWN_FAULTS])
    return tuple(name for _, name in names if name is not None)


def _name(line: str, is_json: bool) -> str | None:
    if not is_json:
        return label(line)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return label(value.get("group") if isinstance(value, dict) else value)


def pinned_codes(lists: Mapping[str, tuple[str, ...] | Path], known: Mapping[str, int]) -> dict[int, str]:
    """The split of each pinned group, by its code.

    lists: of each split. known: the code of every name that a group with kept rows goes by.
    Raises InputError with every unreadable list, unknown name (with the nearest known ones) and group in two lists.
    """
    found: dict[int, tuple[str, str]] = {}  # split and the name that it was given
    faults: list[Fault] = []
    for split, pinned in lists.items():
        key = f"split.{split}_groups"
        try:
            names = pinned_names(key, pinned)
        except InputError as error:
            faults += error.faults
            continue
        faults += _unknown(key, [name for name in names if name not in known], known)
        for name in dict.fromkeys(name for name in names if name in known):
            other, given = found.setdefault(known[name], (split, name))
            if other != split:
                joined = "" if given == name else f", where it is called {given!r}"
                what = f"the group is in split.{other}_groups as well{joined}"
                faults.append(Fault(f"{key}: {name}", what, "take it out of one of the two lists"))
    if faults:
        raise InputError(*faults)
    return {code: split for code, (split, _) in found.items()}


def _unknown(key: str, names: list[str], known: Mapping[str, int]) -> list[Fault]:
    faults = []
    for name in names[:SHOWN_FAULTS]:
        near = process.extract(name, known.keys(), scorer=fuzz.ratio, limit=CLOSE_MATCHES, score_cutoff=CLOSE_SCORE)
        remedy = f"did you mean {' or '.join(close for close, *_ in near)}?" if near else "name a group that has rows"
        faults.append(Fault(f"{key}: {name}", "no kept row lies in such a group", remedy))
    if len(names) > SHOWN_FAULTS:
        rest = len(names) - SHOWN_FAULTS
        faults.append(Fault(key, f"{rest:,} more of its names are those of no group", "correct them too"))
    return faults
