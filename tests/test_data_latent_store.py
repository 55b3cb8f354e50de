"""The one file of latents and its index: complete or absent, whoever dies, writes beside it, or turns bits over."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_material import Counting, assert_tight, cache_in, data_file, index_file, places, rows_of, write_clips
from latent_writer import Shape, made_of, store_in

from voxtrain.data import latent_index
from voxtrain.data.latent_store import LatentStore, Made
from voxtrain.fault import InputError

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


def assert_holds(store: LatentStore, made: list[Made]) -> None:
    found = store.find([one.key for one in made])
    assert len(found) == len({one.key for one in made})
    for one in made:
        entry = found[one.key]
        assert store.is_whole(one.key, entry)
        latents = store.read(one.key, entry)
        assert latents is not None
        assert latents.dtype == np.float32
        assert np.array_equal(latents, one.latents)
        assert entry.samples == one.samples


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=5), st.lists(SHAPES, min_size=10, max_size=10))
@settings(max_examples=12, deadline=None)
def test_what_is_added_is_found(batches: list[list[int]], shapes: list[Shape]) -> None:
    """In any batches, with repetitions; every store that is opened later agrees."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, every = Path(scratch), {}
        store = store_in(folder)
        for batch in batches:
            made = {number: made_of(number, shapes[number]) for number in batch}
            added = store.add([made[number] for number in batch], {})
            assert added.keys() == {one.key for one in made.values()}
            every |= made
        store.touch([one.key for one in every.values()])
        assert_holds(store, list(every.values()))
        assert_holds(store_in(folder), list(every.values()))
        assert store_in(folder).find([b"never added"]) == {}
        assert assert_tight(folder) == len(every)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Made]]:
    """A store of ten entries."""
    folder, made = tmp_path_factory.mktemp("ten"), [made_of(number) for number in range(10)]
    store_in(folder).add(made, {})
    return folder, made


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_no_damage_gives_wrong_latents(ten: tuple[Path, list[Made]], data: st.DataObject) -> None:
    """A flipped bit or a cut anywhere in either file: what is found is right, and what is lost can be added again."""
    folder, made = ten
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(folder, copy)
        harmed = data.draw(st.sampled_from([index_file(copy), data_file(copy)]))
        whole = harmed.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        flipped = bytes([*whole[:place], whole[place] ^ 1 << data.draw(st.integers(0, 7)), *whole[place + 1 :]])
        harmed.write_bytes(data.draw(st.sampled_from([flipped, whole[:place]])))
        store, wrong = store_in(copy), {}
        for one in made:
            entry = store.find([one.key]).get(one.key)
            if entry is None:
                continue
            if not store.is_whole(one.key, entry):
                wrong[one.key] = entry
                assert store.read(one.key, entry) is None
            else:
                latents = store.read(one.key, entry)
                assert latents is not None
                assert np.array_equal(latents, one.latents)
        store.add(made, wrong)
        assert_holds(store, made)
        assert_holds(store_in(copy), made)


def test_a_sound_index_that_cannot_be_read_just_now_is_not_made_anew(
    ten: tuple[Path, list[Made]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks broken once, and when it is looked at closely the disk does not answer."""
    folder, made = ten
    before = index_file(folder).read_bytes()
    failing = sqlite3.OperationalError("disk I/O error")
    failing.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    errors = iter([sqlite3.DatabaseError("malformed"), failing])
    real = latent_index.connected

    def connected(path: Path, mode: str) -> sqlite3.Connection:
        error = next(errors, None)
        if error is not None:
            raise error
        return real(path, mode)

    monkeypatch.setattr(latent_index, "connected", connected)
    with pytest.raises(sqlite3.OperationalError, match="I/O"):
        store_in(folder).find([made[0].key])
    assert index_file(folder).read_bytes() == before
    assert_holds(store_in(folder), made)


def test_days_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, made = store_in(tmp_path), [made_of(number) for number in range(3)]
    days = iter([100, 200])
    monkeypatch.setattr("voxtrain.data.latent_store.today", lambda: next(days))
    store.add(made, {})
    store.touch([made[1].key])
    assert [store.find([one.key])[one.key].day for one in made] == [100, 200, 100]


# Other processes.


def writer(folder: Path, first: int, last: int, together: int, dies: int = 0) -> subprocess.Popen[bytes]:
    """A process that adds entries; see latent_writer.py."""
    script = Path(__file__).with_name("latent_writer.py")
    return subprocess.Popen([sys.executable, script, folder, *map(str, (first, last, together, dies))])


def test_a_writer_that_is_killed_leaves_nothing_of_what_it_was_writing(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    process = writer(tmp_path, 0, 20, 2, dies=3)
    assert process.wait() == -signal.SIGKILL
    store, made = store_in(tmp_path), [made_of(number) for number in range(20)]
    assert store.find([one.key for one in made]).keys() == {one.key for one in made[:4]}
    assert data_file(tmp_path).stat().st_size == 6 * made[0].latents.nbytes - 8
    assert_holds(store, made[:4])
    store.add(made[4:], {})
    assert_holds(store_in(tmp_path), made)
    assert assert_tight(tmp_path) == 20


def test_two_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    """They make the store together, too; one comes from below, the other from above."""
    both = [writer(tmp_path, 0, 60, 3), writer(tmp_path, 59, -1, 2)]
    (tmp_path / "go").touch()
    assert [process.wait() for process in both] == [0, 0]
    assert_holds(store_in(tmp_path), [made_of(number) for number in range(60)])
    assert assert_tight(tmp_path) == 60


@pytest.mark.slow
def test_writers_killed_at_any_moment_harm_nothing(tmp_path: Path) -> None:
    """Sixty processes add the same entries and are killed after a while, two at a time."""
    (tmp_path / "go").touch()
    delays = np.random.default_rng(0).uniform(0.15, 0.6, 60)
    killed, seen = 0, 0
    for k in range(0, 60, 2):
        both = [writer(tmp_path, 0, 3000, 3), writer(tmp_path, 2999, -1, 3)]
        for process, delay_s in zip(both, delays[k:], strict=False):
            time.sleep(delay_s)
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        made = [made_of(number) for number in range(3000)]
        store = store_in(tmp_path)
        found = store.find([one.key for one in made])
        assert len(found) >= seen, "entries were lost"
        seen = len(found)
        assert_holds(store, [one for one in made if one.key in found])
    assert killed > 30
    assert seen > 100
    store_in(tmp_path).add(made, {})
    assert_holds(store_in(tmp_path), made)
    assert assert_tight(tmp_path) == 3000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtrain.data.latents.BETWEEN_COMMITS_S", -1.0)
    audio = write_clips(tmp_path / "clips", 500)
    encode = Counting()
    with pytest.raises(InputError, match=r"(?s)data\.cache_dir.*(full|No space)"):
        cache_in(small_disk / "cache", encode).ensure(rows_of(audio), progress=False)
    kept = len(places(small_disk / "cache"))
    assert 0 < kept < 500
    assert kept >= encode.calls - 1
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    again = Counting()
    cache_in(small_disk / "cache", again).ensure(rows_of(audio), progress=False)
    assert again.calls == 500 - kept
    assert assert_tight(small_disk / "cache") == 500
