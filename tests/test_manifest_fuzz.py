"""Manifests that nobody should write, by the thousand: each ends in a ledger that balances or in a clear fault."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from manifest_material import clean_rules, grouped_split, prepared, write_tone

from voxtrain.durable import read_json, read_jsonl, write_whole
from voxtrain.fault import InputError
from voxtrain.run_folder import SPLITS, DataFolder

WHOLE = {"audit.html", "audit.json", "rejects.jsonl", "reported.jsonl", "split.json", *(f"{s}.jsonl" for s in SPLITS)}
COLUMNS = ("audio", "text", "parent", "id", "duration", "speaker", "ref_audio")
ODD: tuple[Any, ...] = (
    *(None, "", " ", 0, -1, 17, 1e400, float("nan"), 10**30, True, [], {}, [["x"]], {"a": None}, "\ud800", "\udfff x"),
    *("\0", "a\0b", "\ufeff", "\u2028", "\u202e", "e\u0301", "x" * 70_000, "../../../../etc/passwd", "loop.wav", "."),
    *("/dev/zero", "/proc/self/mem", "pipe.wav", "folder.wav", "text.wav", "clip_0.wav/x", "a" * 300 + ".wav", "~"),
    *("=1+1", '"', "'", "\\", "{", "NaN", "null", "\r\n", "Thanks for watching!", "😀", "مرحبا", "2024-01-01"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, and things that are none."""
    folder = tmp_path_factory.mktemp("fuzz")
    for number in range(6):
        path = write_tone(folder / f"clip_{number}.wav", 0.3 + 0.01 * number)
        os.utime(path, (1e9, 1e9))  # long ago: the sounds may be remembered
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "folder.wav").mkdir()
    (folder / "text.wav").write_text("no sound")
    os.mkfifo(folder / "pipe.wav")
    return folder


def records(chance: random.Random) -> list[dict[str, Any]]:
    """Good rows, and rows in which some values are odd."""
    made: list[dict[str, Any]] = []
    for number in range(chance.randint(0, 8)):
        row: dict[str, Any] = {"audio": f"clip_{number % 6}.wav", "text": f"Row {number}.", "parent": f"p{number % 4}"}
        for _ in range(chance.choice((0, 0, 1, 1, 3))):
            row[chance.choice(COLUMNS)] = chance.choice(ODD)
        for name in [name for name in row if chance.random() < 0.02]:
            del row[name]
        made.append(row)
    return made


def as_bytes(chance: random.Random, kind: str) -> bytes:
    made = records(chance)
    if kind == "parquet":
        table = pyarrow.Table.from_pylist(
            [{k: str(v).encode(errors="replace").decode() for k, v in r.items()} for r in made]
        )
        sink = io.BytesIO()
        pyarrow.parquet.write_table(table, sink)
        return sink.getvalue()
    newline = chance.choice(("\n", "\n", "\r\n"))
    mark = chance.choice(("", "", "", "\ufeff"))
    if kind == "csv":
        text = io.StringIO()
        table_of = csv.DictWriter(text, COLUMNS, lineterminator=newline)
        table_of.writeheader()
        table_of.writerows(made)
        return (mark + text.getvalue()).encode(errors="surrogatepass")
    lines = [json.dumps(row, ensure_ascii=chance.random() < 0.8) for row in made]
    return (mark + newline.join(lines) + newline).encode(errors="surrogatepass")


def mangled(chance: random.Random, content: bytes) -> bytes:
    """Some of the bytes cut out, doubled, or replaced."""
    for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
        start = chance.randint(0, len(content))
        end = min(len(content), start + chance.choice((0, 1, 1, 4, 40)))
        more = chance.choice(
            (b"", b"\0", b"\n", b'"', b"{", b"\xff\xfe", b"[" * 2000, b"9" * 5000, content[start:end] * 2)
        )
        content = content[:start] + more + content[end:]
    return content


def check_faults(error: InputError, manifest: Path) -> None:
    """Each says where, what and what to do; where the file cannot be used, it is named."""
    assert error.faults
    assert all(fault.where and fault.what and fault.remedy for fault in error.faults)
    if not error.ledger:
        assert all(manifest.name in fault.where or "data." in fault.where for fault in error.faults)


def outcome(manifest: Path, out: Path, chance: random.Random) -> str:
    """How a manifest ends; checks all that must hold then."""
    clean = clean_rules(max_reject_share=chance.choice((0.2, 1.0)), decode=chance.random() < 0.5, boilerplate=())
    group_by = chance.choice(("parent", "parent", "parent", "row", r"(\d)\.wav", ["parent", "speaker"]))
    split = grouped_split(validation_share=0.4, test_share=0.0)
    force_write = chance.random() < 0.3
    data, before = DataFolder(out), set(out.iterdir()) if out.exists() else set()
    error: InputError | None = None
    try:
        prepared(manifest, out, clean=clean, group_by=group_by, split=split, force_write=force_write)
    except InputError as raised:
        error = raised
    if error is not None and not (error.ledger and force_write):
        check_faults(error, manifest)
        assert (set(out.iterdir()) if out.exists() else set()) == before
        return "fault"
    audit = read_json(data.audit)
    assert bool(audit["refused"]) == (error is not None)
    names = {path.name for path in out.iterdir()}
    assert names == (WHOLE if audit["splits"] else WHOLE - {"split.json", *(f"{name}.jsonl" for name in SPLITS)})
    assert audit["rows_in"] == audit["rows_kept"] + sum(audit["rejects_by_rule"].values())
    assert len(read_jsonl(data.rejects)) == audit["rows_in"] - audit["rows_kept"]
    if audit["splits"]:
        assert sum(len(read_jsonl(data.rows(name))) for name in SPLITS) == audit["rows_kept"]
    return "refused" if audit["refused"] else "ledger"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtrain.manifest.prepare.write_page", lambda data: write_whole(data.page, "page"))
    monkeypatch.setattr("os.fsync", lambda handle: None)  # nothing is lost but time


def ends_of(seeds: range, folder: Path) -> dict[str, int]:
    """How many of the manifests made from these seeds ended how."""
    ends: dict[str, int] = {}
    for seed in seeds:
        chance = random.Random(seed)
        kind = chance.choice(("jsonl", "jsonl", "csv", "parquet"))
        manifest = folder / f"rows.{kind}"
        manifest.write_bytes(mangled(chance, as_bytes(chance, kind)))
        end = outcome(manifest, folder / "data", chance)
        ends[end] = ends.get(end, 0) + 1
    return ends


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_hundred_manifests_end_in_a_ledger_or_a_clear_fault(folder: Path) -> None:
    assert set(ends_of(range(100), folder)) == {"fault", "refused", "ledger"}


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "manifests", [pytest.param(500, marks=pytest.mark.slow), pytest.param(10_000, marks=pytest.mark.torture)]
)
def test_any_manifest_ends_in_a_ledger_or_a_clear_fault(folder: Path, manifests: int) -> None:
    ends = ends_of(range(100, 100 + manifests), folder)
    assert min(ends[end] for end in ("fault", "refused", "ledger")) > manifests // 50, ends
