"""The memory of file hashes: unchanged files are hashed once, and what is broken is forgotten."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from latent_material import (
    write_clips,
)

from voxtrain.data.fingerprint import Fingerprints


@pytest.fixture
def audio(tmp_path: Path) -> list[Path]:
    """Five clips."""
    return write_clips(tmp_path)


def hashing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many files were hashed since."""
    import hashlib

    real, calls = hashlib.file_digest, []
    monkeypatch.setattr(
        "voxtrain.data.fingerprint.hashlib.file_digest", lambda *args: (calls.append(1), real(*args))[1]
    )
    return lambda: len(calls)


def test_unchanged_files_are_hashed_once(audio: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = hashing(monkeypatch)
    memory = tmp_path / "fingerprints.sqlite"
    first = Fingerprints(memory)
    digests = [first.of(path) for path in audio]
    first.save()
    assert hashed() == 5
    second = Fingerprints(memory)
    assert [second.of(path) for path in audio] == digests
    assert hashed() == 5
    audio[2].write_bytes(audio[2].read_bytes()[::-1])  # the same size; other bytes and times
    os.utime(audio[2], (1, 1))  # and the modification time put back: the change time cannot be
    assert second.of(audio[2]) != digests[2]
    assert hashed() == 6
    second.save()
    third = Fingerprints(memory)
    assert [third.of(path) for path in audio][3:] == digests[3:]
    assert hashed() == 6
    third.save()


def test_files_changed_a_moment_ago_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.wav"
    path.write_bytes(b"one")
    hashed = hashing(monkeypatch)
    memory = Fingerprints(tmp_path / "fingerprints.sqlite")
    memory.of(path)
    memory.of(path)
    assert hashed() == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"\0" * 5000, b"SQLite format 3\0", os.urandom(5000)])
def test_a_broken_memory_is_forgotten(
    audio: list[Path], tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "fingerprints.sqlite"
    memory.write_bytes(content)
    fingerprints = Fingerprints(memory)
    digest = fingerprints.of(audio[0])
    fingerprints.save()
    hashed = hashing(monkeypatch)
    again = Fingerprints(memory)
    assert again.of(audio[0]) == digest
    again.save()
    assert hashed() == 0


def test_a_name_that_is_no_unicode_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    hashed = hashing(monkeypatch)
    for _ in range(2):
        fingerprints = Fingerprints(tmp_path / "fingerprints.sqlite")
        fingerprints.of(path)
        fingerprints.save()
    assert hashed() == 1
