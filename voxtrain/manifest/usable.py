"""Whether a manifest can be used at all: its kind, lines, columns and ids. What is wrong is told all at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.columns import NEEDED, Columns
from voxtrain.manifest.formats import Record, chunks
from voxtrain.manifest.row import Row, RowReader
from voxtrain.manifest.splitting.group import Grouping, parse_group_by
from voxtrain.manifest.splitting.possible import possible_groups

SHOWN_FAULTS = 10
HEAD_ROWS = 2048
GroupBy = str | Sequence[str]


def grouping_of(group_by: GroupBy) -> Grouping:
    """The grouping that `data.group_by` names. Raises InputError where it names none."""
    try:
        return parse_group_by(group_by)
    except ValueError as error:
        remedy = "data.group_by=COLUMN, [COLUMN,COLUMN], a regular expression on the path, or row"
        raise InputError(Fault(f"data.group_by = {group_by}", str(error), remedy)) from None


def check_head(path: Path, columns: Columns, group_by: GroupBy) -> None:
    """Look at the first rows of a manifest. Raises InputError with all that is wrong with them.

    Columns that none of them has are looked for in the rest of the file.
    """
    rows_of(path, columns, group_by, HEAD_ROWS)


def rows_of(path: Path, columns: Columns, group_by: GroupBy, most_rows: int | None = None) -> list[Row]:
    """The first rows of a manifest as they are written, or all of them, without a look at any audio.

    Raises InputError with all that is wrong with them, or with the whole file.
    """
    path = path.expanduser().absolute()
    grouping = grouping_of(group_by)
    reader, rows = RowReader(path.parent, columns, grouping), list[Row]()
    broken: list[tuple[int, str]] = []
    seen: set[str] = set()
    lines: dict[str, list[int]] = {}
    names_itself: set[str] = set()
    parts = chunks(path, HEAD_ROWS)
    for chunk in parts:
        for line, record in chunk.lines():
            if isinstance(record, str):
                broken.append((line, record))
                continue
            seen.update(record)
            read = reader.read(record, line)
            rows.append(read.row)
            lines.setdefault(read.row.id, []).append(line)
            if read.names_itself:
                names_itself.add(read.row.id)
        if most_rows is not None and len(rows) + len(broken) >= most_rows:
            break
    for chunk in parts:
        if not absent_columns(columns, grouping, seen):
            break
        for _, record in chunk.lines():
            seen.update(() if isinstance(record, str) else record)
    repeated = {name: at for name, at in lines.items() if len(at) > 1 and name in names_itself}
    faults = file_faults(path, columns, grouping, len(rows), broken, seen)
    faults += repeated_faults(path, repeated, len(repeated))
    if faults:
        raise InputError(*faults)
    return rows


def file_faults(
    path: Path,
    columns: Columns,
    grouping: Grouping,
    rows: int,
    broken: Sequence[tuple[int, str]],
    seen: Collection[str],
) -> list[Fault]:
    """What makes the whole file unusable. broken: lines with the reason. seen: the columns that any row has."""
    faults = [Fault(f"{path}:{line}", why, "mend the line, or leave it out") for line, why in broken[:SHOWN_FAULTS]]
    rest = [line for line, _ in broken[SHOWN_FAULTS:]]
    if rest:
        faults.append(Fault(str(path), f"{len(rest)} more lines are broken: {_listed(rest)}", "mend them too"))
    if not rows and not broken:
        faults.append(Fault(str(path), "the manifest has no rows", "write one row per clip, with `audio` and `text`"))
    if rows:
        faults += [_absent(path, columns, grouping, column, seen) for column in absent_columns(columns, grouping, seen)]
    return faults


def absent_columns(columns: Columns, grouping: Grouping, seen: Collection[str]) -> list[str]:
    """The columns that are needed and that no row has."""
    return [name for name in dict.fromkeys((*NEEDED, *grouping.columns)) if columns.in_file(name) not in seen]


def _absent(path: Path, columns: Columns, grouping: Grouping, column: str, seen: Collection[str]) -> Fault:
    name, there = columns.in_file(column), ", ".join(sorted(seen)) or "none"
    mapped = f" (data.columns.{column})" if name != column else ""
    if column in NEEDED:
        remedy = f"name the column that holds it: data.columns.{column}=NAME"
        return Fault(str(path), f"no row has the column `{name}`{mapped}; there are: {there}", remedy)
    group_by = grouping.value if isinstance(grouping.value, str) else ", ".join(grouping.value)
    what = f"no row has the column `{name}`{mapped}. {possible_groups(_records(path), columns.in_file('audio'))}"
    remedy = "data.group_by=COLUMN, or add a column that names the recording that a clip was cut from"
    return Fault(f"data.group_by = {group_by}", what, remedy)


def _records(path: Path) -> Iterator[Record]:
    lines = chain.from_iterable(chunk.lines() for chunk in chunks(path, HEAD_ROWS))
    return (record for _, record in lines if not isinstance(record, str))


def repeated_faults(path: Path, repeated: Mapping[str, list[int]], count: int) -> list[Fault]:
    """Ids that the manifest gives to several rows. repeated: some of them, with their lines; count: of all."""
    remedy = "give each row its own id, or leave the column out: ids are then made from path and text"
    faults = [
        Fault(f"{path}:{at[1]}", f"the id {name!r} stands on several lines: {_listed(at)}", remedy)
        for name, at in list(repeated.items())[:SHOWN_FAULTS]
    ]
    if count > len(faults):
        faults.append(Fault(str(path), f"{count - len(faults)} more ids stand on several lines", remedy))
    return faults


def _listed(lines: Sequence[int]) -> str:
    shown = ", ".join(str(line) for line in lines[: 5 * SHOWN_FAULTS])
    return shown + (", ..." if len(lines) > 5 * SHOWN_FAULTS else "")
