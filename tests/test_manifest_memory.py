"""What is remembered of audio files: never something else than the file says now, and nothing that is not sure."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from manifest_material import prepared, write_lines, write_tone

from voxtrain.manifest import sounds
from voxtrain.manifest.sound import Sound, read_sound
from voxtrain.manifest.sounds import SoundMemory, prepare_memory, remember

Hear = Callable[..., Sound]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A clip that was written an hour ago."""
    return aged(write_tone(tmp_path / "clip.wav", 0.5))


def aged(path: Path, seconds: float = 3600) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were opened."""
    paths: list[str] = []

    def read(path: str, decode: bool, status: os.stat_result | None = None) -> Sound:
        paths.append(path)
        return read_sound(path, decode, status)

    monkeypatch.setattr(sounds, "read_sound", read)
    return paths


@pytest.fixture
def hear(tmp_path: Path) -> Hear:
    """What is heard in a file by an audit of its own, which remembers it."""

    def call(path: Path, decode: bool = True) -> Sound:
        database = tmp_path / "memory" / "facts.sqlite"
        assert prepare_memory(database)
        memory = SoundMemory(database, decode)
        heard = memory.hear([str(path)])[str(path)]
        memory.close()
        assert remember(database, memory.fresh)
        return heard.sound

    return call


def test_a_second_audit_opens_no_file(hear: Hear, clip: Path, opened: list[str]) -> None:
    first = hear(clip)
    assert (hear(clip), opened) == (first, [str(clip)])
    assert first == read_sound(str(clip), decode=True)
    assert first.samples is not None


def test_headers_alone_say_nothing_of_samples_whatever_is_known(hear: Hear, clip: Path, opened: list[str]) -> None:
    assert hear(clip, decode=False).samples is None
    whole = hear(clip)
    assert (whole.samples is not None, len(opened)) == (True, 2)
    assert hear(clip, decode=False) == read_sound(str(clip), decode=False)
    assert hear(clip) == whole
    assert len(opened) == 2


def test_a_file_that_changed_is_read_again(hear: Hear, clip: Path) -> None:
    hear(clip)
    aged(write_tone(clip, 0.75), 1800)
    assert hear(clip).duration_s == 0.75
    aged(write_tone(clip, 0.75, rate_hz=8000), 900)
    assert hear(clip).sample_rate_hz == 8000


def test_a_file_that_changed_just_now_is_not_remembered(hear: Hear, tmp_path: Path, opened: list[str]) -> None:
    young = aged(write_tone(tmp_path / "young.wav", 0.5), 1.0)
    future = aged(write_tone(tmp_path / "future.wav", 0.5), -3600)
    for path in (young, young, future, future):
        hear(path)
    assert len(opened) == 4


def test_what_cannot_be_read_may_be_readable_tomorrow(hear: Hear, tmp_path: Path, opened: list[str]) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_text("no sound")
    aged(broken)
    assert hear(broken).reason == hear(broken).reason != ""
    assert hear(tmp_path / "missing.wav").missing
    assert len(opened) == 3


@pytest.mark.parametrize("content", [b"", b"no database at all", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_database_is_made_anew(hear: Hear, clip: Path, tmp_path: Path, content: bytes) -> None:
    database = tmp_path / "memory" / "facts.sqlite"
    database.parent.mkdir()
    database.write_bytes(content)
    assert hear(clip) == hear(clip) == read_sound(str(clip), decode=True)
    assert sqlite3.connect(database).execute("SELECT count(*) FROM sounds").fetchone() == (1,)


def test_facts_of_another_layout_are_not_used(hear: Hear, clip: Path, tmp_path: Path, opened: list[str]) -> None:
    hear(clip)
    with sqlite3.connect(tmp_path / "memory" / "facts.sqlite") as database:
        database.execute("UPDATE sounds SET facts = x'0102'")
    assert hear(clip) == read_sound(str(clip), decode=True)
    assert len(opened) == 2


def test_several_processes_may_remember_at_once(tmp_path: Path) -> None:
    database = tmp_path / "facts.sqlite"
    with ThreadPoolExecutor(8) as pool:
        parts = [[(100 * part + n, 1, 1, b"") for n in range(100)] for part in range(16)]
        assert all(pool.map(lambda part: remember(database, part), parts))
    assert sqlite3.connect(database).execute("SELECT count(*) FROM sounds").fetchone() == (1600,)


def test_without_a_place_for_the_database_the_audit_is_the_same(
    clips: list[tuple[Path, str, str]], tmp_path: Path
) -> None:
    rows = [{"audio": str(path), "text": text, "parent": parent} for path, text, parent in clips]
    manifest = write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "file").touch()
    without = prepared(manifest, tmp_path / "one", sound_memory=tmp_path / "file" / "facts.sqlite")
    assert without == prepared(manifest, tmp_path / "other")
    assert without == prepared(manifest, tmp_path / "again")
