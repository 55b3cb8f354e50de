"""What was judged before is recalled only where it would be judged the same again."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from manifest_material import clean_rules, prepared, write_lines, write_tone

from voxtrain.durable import write_whole
from voxtrain.manifest import recall
from voxtrain.manifest.judge import Judge

ROWS = 200


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtrain.manifest.prepare.write_page", lambda folder: write_whole(folder.page, "page"))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were judged, chunk by chunk, and not recalled."""
    counts: list[int] = []
    judge = Judge._judged

    def counted(self: Judge, chunk: Any, looked: Any, only_read: bool) -> Any:
        counts.append(len(chunk.lines()))
        return judge(self, chunk, looked, only_read)

    monkeypatch.setattr(Judge, "_judged", counted)
    return counts


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Rows over ten clips of an hour ago, some with a fault."""
    for number in range(10):
        aged(write_tone(tmp_path / f"clip{number}.wav", 0.05 if number == 3 else 0.5))
    texts = ["", "Thank you for watching.", *(f"This is sentence number {number}." for number in range(ROWS))]
    rows = [{"audio": f"clip{n % 10}.wav", "text": texts[n], "parent": f"p{n % 7}", "id": str(n)} for n in range(ROWS)]
    return write_lines(tmp_path / "rows.jsonl", rows)


def aged(path: Path) -> Path:
    then = time.time() - 3600
    os.utime(path, (then, then))
    return path


def audit(manifest: Path, name: str, **clean: Any) -> dict[str, bytes]:
    """The files of an audit, by name, but for audit.json, which is compared without its paths."""
    out = manifest.with_name(name)
    rules = clean_rules(**{"max_reject_share": 1.0, "duplicates": False, **clean})
    prepared(manifest, out, clean=rules, force_write=True)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_second_audit_judges_nothing_and_says_the_same(manifest: Path, judged: list[int]) -> None:
    first = audit(manifest, "first")
    assert sum(judged) == ROWS
    assert json.loads(first["audit.json"])["rows_kept"] < ROWS
    judged.clear()
    assert audit(manifest, "second") == first
    assert judged == []


def test_a_file_that_changed_is_judged_again(manifest: Path, judged: list[int]) -> None:
    first = audit(manifest, "first")
    judged.clear()
    aged(write_tone(manifest.with_name("clip5.wav"), 0.04))
    second = audit(manifest, "second")
    assert sum(judged) > 0
    assert (
        json.loads(second["audit.json"])["rejects_by_rule"]["too_short"]
        > (json.loads(first["audit.json"])["rejects_by_rule"]["too_short"])
    )


def test_a_file_that_is_gone_is_missed(manifest: Path) -> None:
    audit(manifest, "first")
    manifest.with_name("clip5.wav").unlink()
    assert json.loads(audit(manifest, "second")["audit.json"])["rejects_by_rule"]["missing_audio"] == ROWS // 10


def test_another_rule_or_line_is_judged_anew(manifest: Path, judged: list[int]) -> None:
    audit(manifest, "first")
    judged.clear()
    audit(manifest, "second", min_seconds=0.01)
    assert sum(judged) == ROWS
    judged.clear()
    manifest.write_text(manifest.read_text().replace("number 190.", "number one hundred and ninety."))
    third = audit(manifest, "third")
    assert 0 < sum(judged) < ROWS, "chunks before the line that changed are recalled"
    assert b"one hundred and ninety" in b"".join(third.values())


def test_the_source_of_the_rules_counts(manifest: Path, judged: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    audit(manifest, "first")
    judged.clear()
    monkeypatch.setattr(recall, "source_digest", lambda: b"other")
    audit(manifest, "second")
    assert sum(judged) == ROWS


@pytest.mark.parametrize("damage", ["flipped", "nonsense", "another table"])
def test_a_damaged_database_is_done_without(manifest: Path, judged: list[int], damage: str) -> None:
    first = audit(manifest, "first")
    (database,) = manifest.parent.rglob("judged.sqlite")
    if damage == "nonsense":
        database.write_bytes(b"nonsense" * 1000)
    else:
        with sqlite3.connect(database) as open_database:
            if damage == "flipped":
                found = open_database.execute("SELECT name, content FROM chunks").fetchall()
                assert found
                flipped = [(content[:-1] + bytes([content[-1] ^ 1]), name) for name, content in found]
                open_database.executemany("UPDATE chunks SET content = ? WHERE name = ?", flipped)
            else:
                open_database.execute("DROP TABLE chunks")
        open_database.close()
    judged.clear()
    assert audit(manifest, "second") == first
    assert sum(judged) == ROWS


def test_a_large_database_is_begun_anew(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(manifest, "first")
    (database,) = manifest.parent.rglob("judged.sqlite")
    before = database.stat().st_ino
    monkeypatch.setattr(recall, "MOST_BYTES", 1)
    recall.keep(database, [])
    assert database.stat().st_ino != before or database.stat().st_size < 10_000


def test_files_that_changed_just_now_are_not_kept(manifest: Path, judged: list[int]) -> None:
    for path in manifest.parent.glob("*.wav"):
        path.touch()
    audit(manifest, "first")
    judged.clear()
    audit(manifest, "second")
    assert sum(judged) == ROWS
