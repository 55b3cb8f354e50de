"""The door of the data room: what is kept, and what goes when nobody has wanted it for long."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data_material import small_encode
from latent_material import Counting, assert_tight, cache_in, data_file, index_file, rows_of, write_clips
from torch import Tensor

from voxtrain.data import latent_store
from voxtrain.data.__main__ import main
from voxtrain.data.audio import read_wave
from voxtrain.data.pruning import prune, shelves
from voxtrain.fault import InputError

TODAY = 20_000


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path]]:
    """A cache folder with five clips, three of which were wanted today and two a hundred days ago; and the clips."""
    audio, folder = write_clips(tmp_path), tmp_path / "cache" / "latents"
    for day, some in ((TODAY - 100, audio), (TODAY, [audio[0], audio[2], audio[4]])):
        for module in ("latent_store", "latents", "__main__"):
            monkeypatch.setattr(f"voxtrain.data.{module}.today", lambda day=day: day)
        cache_in(folder, Counting()).ensure(rows_of(some), progress=False)
    return folder, audio


def door(folder: Path, *arguments: str) -> int:
    return main([f"data.cache_dir={folder.parent}", *arguments])


def test_what_is_kept_is_told(kept: tuple[Path, list[Path]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, audio = kept
    [shelf] = shelves(folder)
    samples = sum(len(read_wave(path)) for path in audio)
    assert (shelf.entries, shelf.hours, shelf.last_day) == (5, samples / 16_000 / 3600, TODAY)
    assert shelf.size_bytes >= data_file(folder).stat().st_size
    assert door(folder) == 0
    told = capsys.readouterr().out
    assert "key_v" in told
    assert "2024-10-04" in told  # day 20,000 since 1970


def test_pruning_is_told_first_and_done_when_applied(
    kept: tuple[Path, list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, audio = kept
    before = data_file(folder).read_bytes()
    reading = cache_in(folder)
    reading.ensure(rows_of(audio[:1]), progress=False)
    assert door(folder, "--prune-older-than", "30") == 0
    assert "--apply deletes" in capsys.readouterr().out
    assert data_file(folder).read_bytes() == before
    assert door(folder, "--prune-older-than", "30", "--apply") == 0
    assert "set free" in capsys.readouterr().out
    assert assert_tight(folder) == 3
    for cache in (cache_in(folder), reading):
        for path in (audio[0], audio[2], audio[4]) if cache is not reading else audio[:1]:
            assert (cache.latents(path) == small_encode(read_wave(path))).all()
    encode = Counting()
    cache_in(folder, encode).ensure(rows_of(audio), progress=False)
    assert encode.calls == 2
    assert assert_tight(folder) == 5
    assert shelves(folder, TODAY - 100) == []


def test_a_process_that_encodes_while_others_prune_goes_on(kept: tuple[Path, list[Path]]) -> None:
    folder, audio = kept
    more = write_clips(folder.parent / "more", 8)[5:]

    class Pruning(Counting):
        def __call__(self, wave: np.ndarray) -> Tensor:
            for shelf in shelves(folder, TODAY - 30):
                prune(shelf, TODAY - 30)
            return super().__call__(wave)

    encode = Pruning()
    cache = cache_in(folder, encode)
    cache.ensure(rows_of([*audio, *more]), progress=False)
    assert encode.calls == 3
    for path in [*audio, *more]:
        assert (cache.latents(path) == small_encode(read_wave(path))).all()
    assert assert_tight(folder) >= 6


def test_what_no_version_reads_any_more_goes(kept: tuple[Path, list[Path]]) -> None:
    folder, _ = kept
    (folder / "old_v1" / "ab").mkdir(parents=True)
    (folder / "old_v1" / "ab" / "abcd.safetensors").write_bytes(b"x" * 1000)
    (folder / "broken_v2").mkdir()
    (folder / "broken_v2" / "index.sqlite").write_text("broken")
    (folder / "something else").mkdir()
    remarks = {shelf.path.name: shelf.remark for shelf in shelves(folder)}
    assert list(remarks) == ["broken_v2", index_file(folder).parent.name, "old_v1"]
    assert "broken" in remarks["broken_v2"]
    assert "older version" in remarks["old_v1"]
    assert [shelf.path.name for shelf in shelves(folder, TODAY)] == [index_file(folder).parent.name]
    for name in ("old_v1", "broken_v2"):
        os.utime(folder / name, (latent_store.DAY_S * (TODAY - 31),) * 2)
    going = shelves(folder, TODAY - 30)
    assert len(going) == 3
    for shelf in going:
        prune(shelf, TODAY - 30)
    assert sorted(path.name for path in folder.glob("*_v*")) == [index_file(folder).parent.name]
    assert assert_tight(folder) == 3
    assert (folder / "something else").is_dir()


def test_all_that_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        main(["here", "--apply", f"data.cache_dir={tmp_path}"])
    assert [fault.where for fault in caught.value.faults] == ["here", "--apply"]
    with pytest.raises(InputError, match="no number of days"):
        main([f"data.cache_dir={tmp_path}", "--prune-older-than", "-1"])
