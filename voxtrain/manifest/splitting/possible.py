"""What a manifest could be grouped by, where it has not the column that was asked for: columns and the path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from voxtrain.manifest.splitting.group import BY_ROW, METACHARACTERS, label

COUNTED = 100_000  # distinct values of one column: bounds memory; more are told as "over 100,000"
COLUMNS = 50  # a manifest with more columns than that has them by accident
OFFERED = 8
NO_GROUPS = frozenset({"audio", "text", "id", "duration", "ref_audio", "line"})  # columns that tell rows apart
PATHS = {
    r"^/?([^/]+)/": "the first folder",
    r"^(.*)/": "the whole folder",
    r"([^/_-]+)[_-][^/]*$": "the file name up to its first _ or -",
    r"([^/]+?)[_-]?[0-9]+\.[^/.]*$": "the file name without its last number",
}


@dataclass(slots=True)
class _Values:
    """The distinct values of one column: 64 bits of a hash of each."""

    rows: int = 0
    found: set[int] = field(default_factory=set)

    def add(self, name: str) -> None:
        self.rows += 1
        if len(self.found) <= COUNTED:
            self.found.add(hash(name))

    def is_full(self) -> bool:
        return len(self.found) > COUNTED


def possible_groups(records: Iterable[Mapping[str, Any]], audio_column: str = "audio") -> str:
    """A sentence for the message: each `data.group_by` that some rows share and others do not, with its groups.

    records: of the manifest, as they stand in it. audio_column: which of their columns holds the path.
    Memory is bounded: values are counted up to COUNTED of a column, in the first COLUMNS columns.
    """
    columns: dict[str, _Values] = {}
    paths = {pattern: (re.compile(pattern), _Values()) for pattern in PATHS}
    total = 0
    for record in records:
        total += 1
        for name, value in record.items():
            if name in NO_GROUPS or name == audio_column or (name not in columns and len(columns) >= COLUMNS):
                continue
            text = label(value)
            if text is not None:
                columns.setdefault(name, _Values()).add(text)
        audio = record.get(audio_column)
        if isinstance(audio, str):
            for pattern, values in paths.values():
                if match := pattern.search(audio):
                    values.add(match[1])
    return _sentence(columns, {pattern: values for pattern, (_, values) in paths.items()}, total)


def _sentence(columns: Mapping[str, _Values], paths: Mapping[str, _Values], total: int) -> str:
    """Columns before paths, fewest groups first; two parts of the path that make the same groups are offered once."""
    offers = []
    for name, values in sorted(columns.items(), key=lambda item: (len(item[1].found), item[0])):
        if _divides(values, total) and name != BY_ROW and not METACHARACTERS & set(name):
            offers.append(f"{name} ({_count(values, total)})")
    seen: list[set[int]] = []
    for pattern, values in sorted(paths.items(), key=lambda item: len(item[1].found)):
        if _divides(values, total) and values.found not in seen:
            seen.append(values.found)
            offers.append(f"'{pattern}' ({PATHS[pattern]}: {_count(values, total)})")
    if not offers:
        return "No other column, and no part of the path, has values that some rows share and others do not."
    return f"It could be, of {total:,} rows: {'; '.join(offers[:OFFERED])}."


def _divides(values: _Values, total: int) -> bool:
    return 1 < len(values.found) < values.rows and 2 * values.rows > total


def _count(values: _Values, total: int) -> str:
    groups = f"over {COUNTED:,}" if values.is_full() else f"{len(values.found):,}"
    missing = total - values.rows
    without = f", {missing:,} row{' has' if missing == 1 else 's have'} none" if missing else ""
    return f"{groups} groups{without}"
