"""What a reader of the leakage certificate should know, in sentences; they stand on every page about the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voxtrain.manifest.splitting.crossing import PAIRS, pair_name

FEW_VALIDATION_GROUPS = 5  # below it there are no confidence intervals (contract: selection.json)
LOPSIDED = 2.0  # a share of the rows this many times over or under the expected one is told
NAMES_SHOWN = 5  # of a group that took in others

Record = Mapping[str, Any]


def split_warnings(record: Record) -> list[str]:
    """Few groups, shares far from the expected ones, moves, and what two splits have in common."""
    warnings = _shares(record)
    if record["method"] == "balanced":
        warnings.append(
            "split.method=balanced: the shares are exact, and unstable: when rows are added or go, any group may "
            "change its split, and held-out rows of this run may be training rows of the next"
        )
    warnings += [
        f"group {move['group']} was moved from {move['from']} to {move['to']}, which was empty"
        for move in record["moved_groups"]
    ]
    for one, other in PAIRS:
        warnings += _shared(record, one, other)
    return warnings + _since(record)


def _shares(record: Record) -> list[str]:
    warnings = []
    groups = record["splits"]["validation"]["groups"]
    if groups < FEW_VALIDATION_GROUPS:
        warnings.append(
            f"validation has {_counted(groups, 'group')}: under {FEW_VALIDATION_GROUPS} there are no confidence "
            "intervals; add recordings, or raise split.validation_share"
        )
    for name, size in record["splits"].items():
        expected, actual = size["expected_share"], size["share_of_rows"]
        chosen = size["pinned_groups"] > 0  # its size is the user's choice
        if expected and not chosen and not expected / LOPSIDED <= actual <= expected * LOPSIDED:
            warnings.append(
                f"{name} has {actual:.1%} of the kept rows where {expected:.1%} were expected: "
                f"{_counted(size['groups'], 'group')} cannot split evenly"
            )
    return warnings


def _shared(record: Record, one: str, other: str) -> list[str]:
    """What two splits have in common, worst first."""
    pair, both, warnings = pair_name(one, other), f"{one} and {other}", []
    files = record["shared_audio"][pair]
    if files["shared"]:
        warnings.append(
            f"{both} share {_counted(files['shared'], 'audio file')}, such as {files['examples'][0]['audio']}"
        )
    samples = (record["same_samples"] or {}).get(pair, {"shared": 0})
    if samples["shared"] > files["shared"]:
        clips = _counted(samples["shared"], "clip")
        warnings.append(f"{both} share {clips} with the same samples, {_such_as(samples, one, other)}")
    slices = record["neighbours"][pair]
    if slices["shared"]:
        warnings.append(
            f"{both} have slices of {_counted(slices['shared'], 'recording')} in common, by their paths: "
            f"{_rows(slices, one, other)}; {slices['adjacent_rows']:,} of {one} next to one of {other}, "
            f"{_such_as(slices, one, other)}"
        )
    texts = (record["near_text"] or {}).get(pair, {"shared": 0})
    if texts["shared"]:
        least = "at least " if record["near_text"]["unclear_rows"] else ""
        warnings.append(
            f"{both} have the same or nearly the same texts: {least}{_rows(texts, one, other)}, "
            f"{_such_as(texts, one, other)}"
        )
    return warnings


def _rows(crossing: Record, one: str, other: str) -> str:
    rows = crossing["rows"]
    return f"{rows[one]:,} and {rows[other]:,} rows"


def _such_as(crossing: Record, one: str, other: str) -> str:
    example = crossing["examples"][0]
    first, second = example[one], example[other]
    return f"such as {first['id']} (line {first['line']}) and {second['id']} (line {second['line']})"


def _since(record: Record) -> list[str]:
    since, warnings = record["since_previous"], []
    if since is None:
        return []
    if (since["group_by"], since["seed"]) != (record["group_by"], record["seed"]):
        warnings.append(
            f"{since['folder']} was split by {since['group_by']} with seed {since['seed']}, which moves groups"
        )
    if since["groups_moved"]:
        first = since["moves"][0]
        joined = "" if first["now"] == first["group"] else f", now in {first['now']}"
        warnings.append(
            f"since {since['folder']}, {_counted(since['groups_moved'], 'group')} with "
            f"{_counted(since['rows_moved'], 'row')} changed the split, such as {first['group']}: {first['from']} to "
            f"{first['to']}{joined}"
        )
    if since["groups_joined"]:
        first = since["joined"][0]
        names = ", ".join(first["of"][:NAMES_SHOWN]) + (", ..." if first["groups"] > NAMES_SHOWN else "")
        warnings.append(
            f"since {since['folder']}, {_counted(since['groups_joined'], 'group')} took in others, such as "
            f"{first['group']}, which is made of {names}"
        )
    return warnings


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
