"""Latents whose files are harmed, closed or cannot be written: made anew, or told."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from latent_material import (
    Counting,
    assert_live,
    assert_tight,
    cache_in,
    data_file,
    flip,
    index_file,
    nobody,
    places,
    rows_of,
    write_clips,
)

from voxtrain.fault import InputError, RunFailed


@pytest.fixture
def audio(tmp_path: Path) -> list[Path]:
    """Five clips."""
    return write_clips(tmp_path)


@pytest.fixture
def kept(audio: list[Path], tmp_path: Path) -> Path:
    """A cache folder with the latents of the five clips."""
    cache_in(tmp_path / "cache", Counting()).ensure(rows_of(audio), progress=False)
    return tmp_path / "cache"


@pytest.mark.slow
def test_a_flipped_bit_costs_its_entry_alone(audio: list[Path], kept: Path) -> None:
    for name in places(kept):
        for share in (0.0, 0.5, 0.99):
            offset, size = places(kept)[name]
            flip(data_file(kept), offset + int(share * size), bit=int(share * 8))
            encode = Counting()
            cache = cache_in(kept, encode)
            cache.ensure(rows_of(audio), progress=False)
            assert encode.calls == 1
            assert places(kept)[name][0] != offset
            assert_live(cache, audio)
    assert len(places(kept)) == 5
    assert_live(cache_in(kept), audio)


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm",
    [
        lambda kept: data_file(kept).unlink(),
        lambda kept: os.truncate(data_file(kept), 100),
        lambda kept: os.truncate(data_file(kept), 0),
        lambda kept: data_file(kept).write_bytes(b"x" * data_file(kept).stat().st_size),
        lambda kept: index_file(kept).unlink(),
        lambda kept: os.truncate(index_file(kept), 0),
        lambda kept: os.truncate(index_file(kept), 4097),
        lambda kept: os.truncate(index_file(kept), 100),
        lambda kept: index_file(kept).write_text("something else altogether" * 1000),
        lambda kept: index_file(kept).write_bytes(os.urandom(8192)),
        lambda kept: (kept / "key_v2" / "index.sqlite-journal").write_bytes(os.urandom(8192)),
    ],
)
def test_harmed_files_are_made_anew(audio: list[Path], kept: Path, harm: Callable[[Path], Any]) -> None:
    harm(kept)
    cache = cache_in(kept, Counting())
    cache.ensure(rows_of(audio), progress=False)
    assert_live(cache, audio)
    again = cache_in(kept)
    again.ensure(rows_of(audio), progress=False)
    assert_live(again, audio)
    assert len(list(kept.rglob("*.f32"))) == 1


def test_a_tail_that_a_dead_writer_left_is_cut_off(audio: list[Path], kept: Path) -> None:
    with data_file(kept).open("ab") as file:
        file.write(b"torn" * 10_000)
    more = write_clips(kept / "more", 7)[5:]
    cache = cache_in(kept, Counting())
    cache.ensure(rows_of(more), progress=False)
    assert assert_tight(kept) == 7
    assert_live(cache, [*audio, *more])


def test_a_file_that_changes_while_it_is_used_ends_the_run(audio: list[Path], kept: Path) -> None:
    for harm in (lambda: flip(data_file(kept), 1), lambda: os.truncate(data_file(kept), 16)):
        cache = cache_in(kept, Counting())
        cache.ensure(rows_of(audio), progress=False)
        harm()
        with pytest.raises(RunFailed, match="resume=RUN"):
            [cache.latents(path) for path in audio]


def test_who_reads_keeps_what_another_process_makes_anew(audio: list[Path], kept: Path) -> None:
    cache = cache_in(kept)
    cache.ensure(rows_of(audio), progress=False)
    index_file(kept).write_text("broken")
    cache_in(kept, Counting()).ensure(rows_of(audio[:1]), progress=False)
    assert len(list(kept.rglob("*.f32"))) == 1
    assert_live(cache, audio)
    shutil.rmtree(kept)
    assert_live(cache, audio)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def closed(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def test_a_folder_that_may_only_be_read_is_used(public: Path) -> None:
    audio = write_clips(public, 6)
    cache_in(public / "cache", Counting()).ensure(rows_of(audio[:5]), progress=False)
    closed(public / "cache")
    with nobody():
        cache = cache_in(public / "cache")
        cache.ensure(rows_of(audio[:5]), progress=False)
        assert_live(cache, audio[:5])
        with pytest.raises(InputError, match=r"data\.cache_dir"):
            cache_in(public / "cache", Counting()).ensure(rows_of(audio), progress=False)
    (public / "cache").chmod(0o755)
    assert assert_tight(public / "cache") == 5


def test_a_broken_cache_in_a_folder_that_may_only_be_read_is_told(public: Path) -> None:
    audio = write_clips(public)
    cache_in(public / "cache", Counting()).ensure(rows_of(audio), progress=False)
    index_file(public / "cache").write_text("broken")
    closed(public / "cache")
    with nobody(), pytest.raises(InputError, match=r"data\.cache_dir"):
        cache_in(public / "cache", Counting()).ensure(rows_of(audio), progress=False)


def test_a_cache_that_cannot_be_written_is_told(audio: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    encode = Counting()
    with pytest.raises(InputError, match=r"data\.cache_dir"):
        cache_in(tmp_path / "cache", encode).ensure(rows_of(audio), progress=False)
    assert encode.calls == 0  # before the first clip, not after all of them


def test_a_full_disk_is_told_and_what_was_encoded_is_kept(
    audio: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the third entry is flushed, its bytes half written."""
    monkeypatch.setattr("voxtrain.data.latents.BETWEEN_COMMITS_S", -1.0)  # each clip is committed on its own
    real, flushed = os.fdatasync, []

    def full(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) >= 3:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 8)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(InputError, match="No space left on device") as caught:
        cache_in(tmp_path / "cache", Counting()).ensure(rows_of(audio), progress=False)
    assert "data.cache_dir" in caught.value.faults[0].remedy
    assert len(flushed) == 3  # it is not tried again for every clip
    monkeypatch.setattr(os, "fdatasync", real)
    encode = Counting()
    cache = cache_in(tmp_path / "cache", encode)
    cache.ensure(rows_of(audio), progress=False)
    assert encode.calls == 3
    assert assert_tight(tmp_path / "cache") == 5
    assert_live(cache, audio)
