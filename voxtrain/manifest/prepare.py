"""From a manifest to the data/ folder of a run: read, judge, split, write.

Nothing is written unless all of it can stand (a door that is asked for the audit itself says `force_write`), and a
folder that already holds the same preparation is kept as it is: audit.json is removed first and written when all that
it tells of stands, so a folder that has it lacks at most the page that is made from it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from voxtrain.durable import read_json, read_jsonl, write_json
from voxtrain.fault import Fault, InputError
from voxtrain.manifest.audit import ledger, ledger_text, measures, reported
from voxtrain.manifest.clean import EXCLUDED, CleanRules
from voxtrain.manifest.columns import Columns
from voxtrain.manifest.corpus import Corpus, repeated_lines
from voxtrain.manifest.decide import Split, decided, report_names, split_of
from voxtrain.manifest.distributions import distributions
from voxtrain.manifest.evidence import Evidence
from voxtrain.manifest.exclude import read_exclude
from voxtrain.manifest.formats import check_file
from voxtrain.manifest.gather import gather
from voxtrain.manifest.page.whole import write_page
from voxtrain.manifest.row import Row
from voxtrain.manifest.sound import SOUND_VERSION
from voxtrain.manifest.splitting.certificate import Certificate
from voxtrain.manifest.splitting.group import Grouping
from voxtrain.manifest.splitting.placing import NO_SPLIT
from voxtrain.manifest.splitting.split import GroupedSplit
from voxtrain.manifest.spool import Spool
from voxtrain.manifest.transcript import TranscriptCheck
from voxtrain.manifest.usable import GroupBy, check_head, grouping_of
from voxtrain.manifest.written import write_findings, write_splits
from voxtrain.run_folder import SPLITS, DataFolder

VERSION = 2  # raise it when a rule decides otherwise: older preparations are then made again
UNSPLIT = 4  # of kept rows, in the distributions, where there is no split
UNAVOIDABLE = {"invalid_value", "no_group", "missing_audio", "unreadable_audio", "too_short", "too_long", "excluded"}


def prepare(
    manifest: Path,
    columns: Columns,
    group_by: GroupBy,
    clean: CleanRules,
    split: GroupedSplit,
    seed: int,
    folder: DataFolder,
    sound_memory: Path,
    rows_per_step: int | None,
    force_write: bool,
) -> dict[str, Any]:
    """Audit, clean and split a manifest into `folder`; returns what audit.json says.

    sound_memory: the database of what is known of audio files. rows_per_step: of one optimizer step; with it the audit
    says how many steps the rejects would have touched.
    Raises InputError when the manifest cannot be read and, with the ledger, when no row is left, no split can be made
    or too many rows are rejected; the files are then written only with `force_write`.
    """
    manifest = manifest.expanduser().absolute()
    check_file(manifest)
    grouping, excluded = grouping_of(group_by), read_exclude(clean.exclude)
    source = _source(manifest, columns, grouping, clean, split, seed, rows_per_step)
    standing = _standing(folder, source["fingerprint"])
    if standing is not None:
        return standing
    check_head(manifest, columns, group_by)
    try:
        with (
            closing(Spool(folder.root.absolute())) as spool,
            ThreadPoolExecutor(1) as aside,
            _listener(clean, sound_memory) as listen,
        ):
            corpus, found_ids = gather(manifest, columns, grouping, clean, excluded, sound_memory, spool, aside)
            evidence = decided(corpus, spool, clean, listen)
            warnings = [*_clean_warnings(clean), *_exclude_warnings(clean, len(excluded) - len(found_ids))]
            audit = source | _audit(evidence, clean, rows_per_step) | {"warnings": warnings}
            return _finish(audit, evidence, grouping, clean, split, folder, force_write)
    except OSError as error:
        what = f"it cannot be written: {error.strerror or error}"
        raise InputError(Fault(str(folder.root), what, "make room there, or name another folder")) from error


def _listener(clean: CleanRules, sound_memory: Path) -> AbstractContextManager[TranscriptCheck | None]:
    """The speech recogniser, where one is wanted: what it lacks is told before any audio is read."""
    if clean.asr is None:
        return nullcontext()
    return TranscriptCheck(clean.asr, clean.asr.recogniser(), sound_memory.with_name("heard.sqlite"))


def read_split(folder: DataFolder, split: str) -> list[Row]:
    """The kept rows of one of `SPLITS`, in the order of the manifest."""
    return [Row.from_record(record) for record in read_jsonl(folder.rows(split))]


def _source(
    manifest: Path,
    columns: Columns,
    grouping: Grouping,
    clean: CleanRules,
    split: GroupedSplit,
    seed: int,
    rows_per_step: int | None,
) -> dict[str, Any]:
    """What the preparation was made from; the fingerprint stands for all of it."""
    source = {
        "manifest": str(manifest),
        "manifest_sha256": _digest(manifest),
        "columns": columns.other_names(),
        "group_by": grouping.value if isinstance(grouping.value, str) else list(grouping.value),
        "seed": seed,
        "clean": clean.model_dump(mode="json"),
        "split": split.model_dump(mode="json"),
    }
    outside = {"exclude": None if clean.exclude is None else _digest(clean.exclude.expanduser())}
    versions = {"version": VERSION, "sound_version": SOUND_VERSION}
    everything = source | outside | versions | {"rows_per_step": rows_per_step, "files": split.outside_digests()}
    text = json.dumps(everything, sort_keys=True)
    return source | {"fingerprint": hashlib.sha256(text.encode()).hexdigest()}


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _standing(folder: DataFolder, fingerprint: str) -> dict[str, Any] | None:
    """The audit of a complete preparation with that fingerprint, if the folder holds one."""
    files = [folder.audit, folder.page, folder.rejects, folder.reported, folder.split, *map(folder.rows, SPLITS)]
    if not all(path.is_file() for path in files):
        return None
    try:
        audit = read_json(folder.audit)
    except ValueError:
        return None
    fits = isinstance(audit, dict) and audit.get("fingerprint") == fingerprint and not audit.get("refused")
    return audit if fits else None


def _audit(evidence: Evidence, clean: CleanRules, rows_per_step: int | None) -> dict[str, Any]:
    """What is known before the split is."""
    corpus = evidence.corpus
    book = ledger(evidence, clean.rule_names(), rows_per_step)
    return book | {
        "excluded": book["fired"].get(EXCLUDED, {}).get(EXCLUDED, 0),
        "reported": reported(corpus, report_names(clean)),
        "repeated_lines": repeated_lines(corpus, evidence.spool),
    }


def _finish(
    audit: dict[str, Any],
    evidence: Evidence,
    grouping: Grouping,
    clean: CleanRules,
    settings: GroupedSplit,
    folder: DataFolder,
    force_write: bool,
) -> dict[str, Any]:
    """Split the rows and write all files, unless something speaks against it."""
    made: Split | None = None
    certificate: Certificate | None = None
    faults = _refusals(audit, clean)
    if audit["rows_kept"]:
        try:
            made = split_of(evidence.corpus, grouping, settings, audit["seed"])
            certificate = Certificate(made.sizes, settings, grouping, audit["seed"], clean.near_duplicate_score)
        except InputError as error:
            made = None
            faults += error.faults
    audit["splits"] = None if made is None else made.summary()
    audit["distributions"] = distributions(_places(evidence.corpus, made), measures(evidence.corpus))
    audit["refused"] = [fault.what for fault in faults]
    if certificate is None and grouping.warning is not None:
        audit["warnings"].append(grouping.warning)
    if force_write or not faults:
        _write(folder, audit, evidence, made, certificate)
    if faults:
        raise InputError(*faults, ledger=ledger_text(audit))
    return audit


def _places(corpus: Corpus, split: Split | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[N] as `distributions` wants them: 0 is rejected, then the splits."""
    if split is None:
        return np.where(corpus.kept(), UNSPLIT, 0).astype(np.uint8)
    return np.where(split.places == NO_SPLIT, 0, split.places + 1).astype(np.uint8)


def _refusals(audit: Mapping[str, Any], clean: CleanRules) -> list[Fault]:
    """Why training may not start from these rows, whatever the split."""
    look = f"python -m voxtrain.manifest data.manifest={audit['manifest']} out=DIR tells why (DIR/audit.html)"
    if not audit["rows_kept"]:
        return [Fault(audit["manifest"], f"none of its {audit['rows_in']:,} rows can be learnt from", look)]
    share = audit["reject_share"]
    if share <= clean.max_reject_share:
        return []
    what = f"{share:.1%} of the rows are rejected: look at the data before a night of training"
    remedy = f"{look}; if it is right to reject them, clean.max_reject_share={math.ceil(share * 100) / 100}"
    return [Fault(f"clean.max_reject_share = {clean.max_reject_share:g}", what, remedy)]


def _clean_warnings(clean: CleanRules) -> list[str]:
    if set(clean.rule_names()) - UNAVOIDABLE or clean.min_seconds > 0:
        return []
    return [
        "CLEANING IS OFF (clean): empty texts, boilerplate, silence and duplicates are learnt from as they are; only "
        "what cannot be trained at all is rejected"
    ]


def _exclude_warnings(clean: CleanRules, unknown: int) -> list[str]:
    if not unknown:
        return []
    return [f"{unknown:,} of the ids in {clean.exclude} are those of no row: was it made from another manifest?"]


def _write(
    folder: DataFolder,
    audit: dict[str, Any],
    evidence: Evidence,
    split: Split | None,
    certificate: Certificate | None,
) -> None:
    """audit.json goes first; files of an older preparation that have no successor are removed."""
    folder.audit.unlink(missing_ok=True)
    write_findings(folder, evidence)
    if split is None or certificate is None:
        for path in (folder.split, *map(folder.rows, SPLITS)):
            path.unlink(missing_ok=True)
    else:
        write_splits(folder, evidence, split, certificate)
        record = certificate.record(audit["fingerprint"])
        write_json(folder.split, record)
        audit["warnings"] = list(dict.fromkeys([*audit["warnings"], *record["warnings"]]))
    write_json(folder.audit, audit)
    write_page(folder)
