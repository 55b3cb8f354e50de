"""From a manifest to the data/ folder of a run: read, judge, split, write.

Nothing is written unless all of it can stand (a door that is asked for the audit itself says `force_write`), and a
folder that already holds the same preparation is kept as it is: audit.json is removed first and written last, so a
folder that has it is complete.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxtrain.durable import read_json, read_jsonl, write_json, write_jsonl
from voxtrain.fault import Fault, InputError
from voxtrain.manifest.audit import ledger, ledger_text
from voxtrain.manifest.clean import CleanRules, Verdict, audio_paths, judge
from voxtrain.manifest.formats import check_file
from voxtrain.manifest.header import read_headers
from voxtrain.manifest.row import Row, read_manifest
from voxtrain.manifest.split import GroupedSplit, assign, certificate, split_rows, split_warnings
from voxtrain.run_folder import SPLITS, DataFolder

VERSION = 1  # raise it when a rule decides otherwise: older preparations are then made again
GROUPS_SHOWN = 5

Parts = dict[str, list[Row]]


def prepare(
    manifest: Path,
    group_by: str,
    clean: CleanRules,
    split: GroupedSplit,
    seed: int,
    folder: DataFolder,
    force_write: bool,
    rows_per_step: int | None = None,
) -> dict[str, Any]:
    """Audit, clean and split a manifest into `folder`; returns what audit.json says.

    rows_per_step: of one optimizer step; with it the audit says how many steps the rejects would have touched.
    Raises InputError when the manifest cannot be read and, with the ledger, when no row is left, no split can be made
    or too many rows are rejected; the files are then written only with `force_write`.
    """
    manifest = manifest.expanduser().absolute()
    check_file(manifest)
    source = _source(manifest, group_by, clean, split, seed, rows_per_step)
    standing = _standing(folder, source["fingerprint"])
    if standing is not None:
        return standing
    rows = read_manifest(manifest, group_by)
    verdicts = judge(rows, read_headers(audio_paths(rows)), clean)
    kept = [replace(verdict.row, duration_s=verdict.duration_s) for verdict in verdicts if verdict.reject is None]
    parts, record = _split(kept, split, source)
    audit = source | ledger(verdicts, clean.rule_names(), rows_per_step) | _split_summary(record)
    faults = _refusals(audit, kept, clean, split)
    audit["refused"] = [fault.what for fault in faults]
    if force_write or not faults:
        _write(folder, audit, verdicts, parts, record)
    if faults:
        raise InputError(*faults, ledger=ledger_text(audit))
    return audit


def read_split(folder: DataFolder, split: str) -> list[Row]:
    """The kept rows of one of `SPLITS`, in the order of the manifest."""
    return [Row.from_record(record) for record in read_jsonl(folder.rows(split))]


def _source(
    manifest: Path, group_by: str, clean: CleanRules, split: GroupedSplit, seed: int, rows_per_step: int | None
) -> dict[str, Any]:
    """What the preparation was made from; the fingerprint stands for all of it."""
    with manifest.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    source = {
        "manifest": str(manifest),
        "manifest_sha256": digest,
        "group_by": group_by,
        "seed": seed,
        "clean": clean.model_dump(mode="json"),
        "split": split.model_dump(mode="json"),
    }
    everything = source | {"version": VERSION, "rows_per_step": rows_per_step}
    text = json.dumps(everything, sort_keys=True)
    return source | {"fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def _split(kept: list[Row], settings: GroupedSplit, source: dict[str, Any]) -> tuple[Parts, dict[str, Any] | None]:
    """The rows of each split and the certificate; nothing where there are too few groups."""
    groups = {row.group for row in kept}
    if len(groups) < len(settings.wanted()):
        return {}, None
    assigned, moves = assign(groups, settings, source["seed"])
    parts = split_rows(kept, assigned)
    record = certificate(parts, moves, settings, source["seed"], source["group_by"])
    return parts, record | {"fingerprint": source["fingerprint"]}


def _split_summary(record: dict[str, Any] | None) -> dict[str, Any]:
    """What the audit repeats of the certificate."""
    if record is None:
        return {"splits": None, "warnings": []}
    sizes = {name: {key: size[key] for key in ("groups", "rows", "seconds")} for name, size in record["splits"].items()}
    return {"splits": sizes, "warnings": split_warnings(record)}


def _standing(folder: DataFolder, fingerprint: str) -> dict[str, Any] | None:
    """The audit of a complete preparation with that fingerprint, if the folder holds one."""
    files = [folder.audit, folder.rejects, folder.split, *(folder.rows(name) for name in SPLITS)]
    if not all(path.is_file() for path in files):
        return None
    try:
        audit = read_json(folder.audit)
    except ValueError:
        return None
    fits = isinstance(audit, dict) and audit.get("fingerprint") == fingerprint and not audit.get("refused")
    return audit if fits else None


def _refusals(audit: dict[str, Any], kept: list[Row], clean: CleanRules, split: GroupedSplit) -> list[Fault]:
    """Why training may not start from these rows."""
    look = f"python -m voxtrain.manifest data.manifest={audit['manifest']} out=DIR lists every reject with its reason"
    if not kept:
        return [Fault(audit["manifest"], f"none of its {audit['rows_in']:,} rows can be learnt from", look)]
    faults = []
    share = audit["reject_share"]
    if share > clean.max_reject_share:
        what = f"{share:.1%} of the rows are rejected: look at the data before a night of training"
        remedy = f"{look}; if it is right to reject them, clean.max_reject_share={math.ceil(share * 100) / 100}"
        faults.append(Fault(f"clean.max_reject_share = {clean.max_reject_share:g}", what, remedy))
    groups = sorted({row.group for row in kept})
    if len(groups) < len(split.wanted()):
        faults.append(_too_few_groups(audit["group_by"], groups, split))
    return faults


def _too_few_groups(group_by: str, groups: list[str], split: GroupedSplit) -> Fault:
    needed = split.wanted()
    lie = f"{len(groups)} group{'' if len(groups) == 1 else 's'} ({', '.join(groups[:GROUPS_SHOWN])})"
    what = f"the kept rows lie in {lie}; {', '.join(needed)} need {len(needed)}, since a group is never divided"
    remedy = "add recordings, or group by a finer column"
    if "test" in needed and len(groups) == len(needed) - 1:
        remedy += ", or do without a test split: split.test_share=0"
    return Fault(f"data.group_by = {group_by}", what, remedy)


def _write(
    folder: DataFolder, audit: dict[str, Any], verdicts: list[Verdict], parts: Parts, record: dict[str, Any] | None
) -> None:
    """audit.json goes first and comes last; files of an older preparation that have no successor are removed."""
    folder.audit.unlink(missing_ok=True)
    write_jsonl(folder.rejects, [verdict.reject.to_record() for verdict in verdicts if verdict.reject is not None])
    if record is None:
        for path in (folder.split, *(folder.rows(name) for name in SPLITS)):
            path.unlink(missing_ok=True)
    else:
        for name, rows in parts.items():
            write_jsonl(folder.rows(name), [row.to_record(audit["group_by"]) for row in rows])
        write_json(folder.split, record)
    write_json(folder.audit, audit)
