"""Latents are computed once, equal live encoding, and never come from an entry that is not whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from data_material import row_of, small_encode
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxtrain.data.audio import read_wave
from voxtrain.data.fingerprint import Fingerprints
from voxtrain.data.latents import LatentCache
from voxtrain.fault import InputError


class Interrupted(BaseException):
    """What no code of ours may catch: pytest itself would stop at a KeyboardInterrupt."""


class Counting:
    """Encodes, and counts how often; breaks off before call number `breaks_at`."""

    def __init__(self, breaks_at: int = 0) -> None:
        self.calls, self.breaks_at = 0, breaks_at

    def __call__(self, wave: np.ndarray) -> Tensor:
        self.calls += 1
        if self.calls == self.breaks_at:
            raise Interrupted
        return small_encode(wave)


@pytest.fixture
def audio(tmp_path: Path) -> list[Path]:
    """Five clips, changed long ago as far as the file system knows."""
    paths = [tmp_path / f"clip_{k}.wav" for k in range(5)]
    for k, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(k).uniform(-0.5, 0.5, 400 + 37 * k), 16_000)
        os.utime(path, (1, 1))
    return paths


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_cached_equals_live(audio: list[Path], tmp_path: Path) -> None:
    encode = Counting()
    cache = LatentCache(tmp_path / "cache", "key", encode)
    cache.ensure([row_of(path) for path in audio], progress=False)
    assert encode.calls == 5
    again = LatentCache(tmp_path / "cache", "key", Counting(breaks_at=1))  # encodes nothing
    again.ensure([row_of(path) for path in audio], progress=False)
    for path in audio:
        live = small_encode(read_wave(path))
        assert live.dtype == torch.float32
        assert torch.equal(cache.latents(path), live)
        assert torch.equal(again.latents(path), live)
        assert again.positions(path) == len(live)


def test_cached_equals_live_with_the_tiny_models_own_vae(
    tiny_folder: Path, clips: list[tuple[Path, str, str]], tmp_path: Path
) -> None:
    from voxtrain.model.upstream import load_encoder, vae_key

    encode = load_encoder(tiny_folder)
    rows = [row_of(path) for path, _, _ in clips[:3]]
    LatentCache(tmp_path, vae_key(tiny_folder), encode).ensure(rows, progress=False)
    cache = LatentCache(tmp_path, vae_key(tiny_folder), Counting(breaks_at=1))
    for row in rows:
        assert torch.equal(cache.latents(row.audio), encode(read_wave(row.audio)))


def test_reference_audio_is_cached_too_and_the_same_audio_once(audio: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.wav"
    shutil.copy(audio[0], copy)
    encode = Counting()
    cache = LatentCache(tmp_path / "cache", "key", encode)
    cache.ensure([row_of(audio[0], ref_audio=audio[1]), row_of(audio[1])], progress=False)
    assert encode.calls == len(entries(tmp_path)) == 2
    assert torch.equal(cache.latents(copy), cache.latents(audio[0]))
    assert encode.calls == 2


def test_an_interrupted_call_goes_on_where_it_was(audio: list[Path], tmp_path: Path) -> None:
    rows = [row_of(path) for path in audio]
    with pytest.raises(Interrupted):
        LatentCache(tmp_path / "cache", "key", Counting(breaks_at=4)).ensure(rows, progress=False)
    assert len(entries(tmp_path)) == 3
    encode = Counting()
    LatentCache(tmp_path / "cache", "key", encode).ensure(rows, progress=False)
    assert encode.calls == 2


def test_another_encoder_has_entries_of_its_own(audio: list[Path], tmp_path: Path) -> None:
    one, other = (
        LatentCache(tmp_path, "one", small_encode),
        LatentCache(tmp_path, "other", lambda w: 2 * small_encode(w)),
    )
    assert torch.equal(2 * one.latents(audio[0]), other.latents(audio[0]))
    foreign, own = entries(tmp_path)  # under "one_v1" and "other_v1"
    shutil.copy(foreign, own)
    assert torch.equal(
        LatentCache(tmp_path, "other", lambda w: 2 * small_encode(w)).latents(audio[0]), 2 * one.latents(audio[0])
    )


def test_an_entry_of_other_audio_is_not_used(audio: list[Path], tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "key", small_encode)
    cache.ensure([row_of(audio[0]), row_of(audio[1])], progress=False)
    first, second = entries(tmp_path)
    shutil.copy(first, second)
    for path in audio[:2]:
        assert torch.equal(LatentCache(tmp_path, "key", small_encode).latents(path), small_encode(read_wave(path)))


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, bytes]:
    """An audio file, the cache folder with its one entry, and that entry's bytes."""
    folder = tmp_path_factory.mktemp("corrupt")
    path = folder / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 200), 16_000)
    LatentCache(folder, "key", small_encode).latents(path)
    return path, folder, entries(folder)[0].read_bytes()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_corrupt_entry_is_made_anew(entry: tuple[Path, Path, bytes], data: st.DataObject) -> None:
    """A flipped bit or a cut anywhere, header and checksum included."""
    path, folder, whole = entry
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = bytes([*whole[:place], whole[place] ^ 1 << bit, *whole[place + 1 :]])
    entries(folder)[0].write_bytes(data.draw(st.sampled_from([flipped, whole[:place], whole + b"x"])))
    encode = Counting()
    latents = LatentCache(folder, "key", encode).latents(path)
    assert torch.equal(latents, small_encode(read_wave(path)))
    mended = entries(folder)[0].read_bytes()
    if encode.calls:  # a bit may fall where it means nothing; what is used has been verified all the same
        assert mended == whole
    entries(folder)[0].write_bytes(whole)


def test_damage_to_values_is_always_seen(entry: tuple[Path, Path, bytes]) -> None:
    path, folder, whole = entry
    values = small_encode(read_wave(path)).numpy().tobytes()
    place = whole.index(values)
    for offset in range(0, len(values), 53):
        at = place + offset
        entries(folder)[0].write_bytes(bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]))
        encode = Counting()
        LatentCache(folder, "key", encode).ensure([row_of(path)], progress=False)
        assert encode.calls == 1
        assert entries(folder)[0].read_bytes() == whole


def test_changed_audio_has_other_latents(audio: list[Path], tmp_path: Path) -> None:
    before = LatentCache(tmp_path, "key", small_encode).latents(audio[0])
    soundfile.write(audio[0], np.zeros(400), 16_000)
    after = LatentCache(tmp_path, "key", small_encode).latents(audio[0])
    assert torch.equal(after, small_encode(np.zeros(400, dtype=np.float32)))
    assert not torch.equal(before, after)


def test_training_opens_no_audio_file(audio: list[Path], tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "key", small_encode)
    cache.ensure([row_of(audio[0])], progress=False)
    live = small_encode(read_wave(audio[0]))
    audio[0].unlink()
    assert torch.equal(cache.latents(audio[0]), live)


def test_every_clip_that_cannot_be_encoded_is_told_at_once(audio: list[Path], tmp_path: Path) -> None:
    audio[1].write_text("no audio")
    audio[3].unlink()
    cache = LatentCache(tmp_path, "key", small_encode)
    with pytest.raises(InputError) as caught:
        cache.ensure([row_of(path) for path in audio], progress=False)
    assert [fault.where for fault in caught.value.faults] == [str(audio[1]), str(audio[3])]
    assert len(entries(tmp_path)) == 3  # the others need not be encoded again


def test_of_many_faults_ten_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "key", small_encode)
    with pytest.raises(InputError, match="3 more clips") as caught:
        cache.ensure([row_of(tmp_path / f"{k}.wav") for k in range(13)], progress=False)
    assert len(caught.value.faults) == 11


@pytest.mark.parametrize("broken", [torch.full((2, 4, 3), torch.nan), torch.zeros(2, 3)])
def test_latents_that_are_no_latents_are_refused(audio: list[Path], tmp_path: Path, broken: Tensor) -> None:
    with pytest.raises(InputError, match="not finite"):
        LatentCache(tmp_path, "key", lambda wave: broken).latents(audio[0])
    assert entries(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_told(audio: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    encode = Counting()
    with pytest.raises(InputError, match=r"data\.cache_dir"):
        LatentCache(tmp_path / "cache", "key", encode).ensure([row_of(path) for path in audio], progress=False)
    assert encode.calls == 1  # at the first clip, not after all of them


def test_progress_is_told_on_stderr(
    audio: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtrain.manifest.progress.PATIENCE_S", -1.0)
    cache = LatentCache(tmp_path, "key", small_encode)
    cache.ensure([row_of(path) for path in audio], progress=True)
    told = capsys.readouterr()
    assert "encoding audio" in told.err
    assert told.out == ""


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
    memory = tmp_path / "fingerprints.json"
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


def test_files_changed_a_moment_ago_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.wav"
    path.write_bytes(b"one")
    hashed = hashing(monkeypatch)
    memory = Fingerprints(tmp_path / "fingerprints.json")
    memory.of(path)
    memory.of(path)
    assert hashed() == 2


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": [1, 2]}', "{", "\x00"])
def test_a_broken_memory_is_forgotten(audio: list[Path], tmp_path: Path, content: str) -> None:
    memory = tmp_path / "fingerprints.json"
    memory.write_text(content)
    fingerprints = Fingerprints(memory)
    digest = fingerprints.of(audio[0])
    fingerprints.save()
    assert Fingerprints(memory).of(audio[0]) == digest
