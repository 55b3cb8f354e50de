"""Latents are computed once, equal live encoding, and never come from an entry that is not whole."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from data_material import row_of, small_encode
from latent_material import (
    Counting,
    Interrupted,
    assert_tight,
    audited,
    cache_in,
    data_file,
    flip,
    index_file,
    nobody,
    places,
    rows_of,
    write_clips,
)
from torch import Tensor

from voxtrain.data.audio import read_wave
from voxtrain.data.fingerprint import Fingerprints
from voxtrain.data.latents import LatentCache
from voxtrain.fault import InputError, RunFailed
from voxtrain.manifest.sound import read_sound


@pytest.fixture
def audio(tmp_path: Path) -> list[Path]:
    """Five clips."""
    return write_clips(tmp_path)


def digest_of(path: Path) -> str:
    samples = read_sound(str(path), decode=True).samples
    assert samples is not None
    return samples.digest


def assert_live(cache: LatentCache, paths: list[Path]) -> None:
    assert paths
    for path in paths:
        live = small_encode(read_wave(path))
        assert live.dtype == torch.float32
        assert torch.equal(cache.latents(path), live)
        assert cache.positions(path) == len(live)


def test_cached_equals_live(audio: list[Path], tmp_path: Path) -> None:
    encode = Counting()
    cache = cache_in(tmp_path / "cache", encode)
    cache.ensure(rows_of(audio), progress=False)
    assert encode.calls == assert_tight(tmp_path / "cache") == 5
    assert_live(cache, audio)
    again = cache_in(tmp_path / "cache")  # encodes nothing
    again.ensure(rows_of(audio), progress=False)
    assert_live(again, audio)
    assert again.seconds(audio[1]) == 437 / 16_000
    assert_live(cache_in(tmp_path / "cache"), audio)  # what was not asked for is looked for


@pytest.mark.slow
def test_cached_equals_live_with_the_tiny_models_own_vae(
    tiny_folder: Path, clips: list[tuple[Path, str, str]], tmp_path: Path
) -> None:
    """Also where the file has another rate: a thread of the cache resamples, the test itself does it in this one."""
    from voxtrain.model.upstream import load_encoder, vae_key

    encode = load_encoder(tiny_folder)
    other = tmp_path / "other.flac"
    soundfile.write(other, np.random.default_rng(0).uniform(-0.5, 0.5, (13_001, 2)), 22_050)
    rows = [row_of(path) for path in (clips[0][0], clips[3][0], other)]
    LatentCache(tmp_path, vae_key(tiny_folder), encode, None).ensure(rows, progress=False)
    cache = cache_in(tmp_path, key=vae_key(tiny_folder))
    for row in rows:
        assert torch.equal(cache.latents(row.audio), encode(read_wave(row.audio)))


@pytest.mark.slow
def test_every_version_and_the_machine_are_in_the_key(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from voxtrain.model import device, upstream

    keys = [upstream.vae_key(tiny_folder)]
    for name in ("torchaudio", "voxcpm", "soundfile", "numpy"):
        with monkeypatch.context() as patch:
            patch.setattr(device, "version", lambda asked, other=name: "0" if asked == other else "9.9")
            keys.append(upstream.vae_key(tiny_folder))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.11.0+rocm")
        keys.append(upstream.vae_key(tiny_folder))
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        keys.append(upstream.vae_key(tiny_folder))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        keys.append(upstream.vae_key(tiny_folder))
    assert len(set(keys)) == 8
    assert keys[-1] == f"{keys[0].split('_')[0]}_cpu77"
    assert upstream.vae_key(tiny_folder) == keys[0]


def test_reference_audio_is_cached_too_and_the_same_audio_once(audio: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.wav"
    shutil.copy(audio[0], copy)
    encode = Counting()
    cache = cache_in(tmp_path / "cache", encode)
    cache.ensure([row_of(audio[0], ref_audio=audio[1]), row_of(audio[1])], progress=False)
    assert encode.calls == assert_tight(tmp_path / "cache") == 2
    assert torch.equal(cache.latents(copy), cache.latents(audio[0]))
    assert encode.calls == 2


# What the audit knows of the samples.


def test_hashed_samples_open_no_audio_file(audio: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [audited(row_of(path, ref_audio=audio[0]), digest_of(path), digest_of(audio[0])) for path in audio]
    cache_in(tmp_path / "cache", Counting()).ensure(rows, progress=False)
    live = {path: small_encode(read_wave(path)) for path in audio}
    monkeypatch.setattr("soundfile.read", None)
    monkeypatch.setattr("soundfile.SoundFile", None)
    for path in audio:
        path.unlink()
    cache = cache_in(tmp_path / "cache")
    cache.ensure(rows, progress=False)
    assert all(torch.equal(cache.latents(path), live[path]) for path in audio)


def test_the_same_samples_in_another_format_are_the_same_entry(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-(2**14), 2**14, 500).astype(np.int16)
    paths = [tmp_path / "a.wav", tmp_path / "a.flac"]
    for path in paths:
        soundfile.write(path, samples, 16_000)
    encode = Counting()
    cache = cache_in(tmp_path / "cache", encode)
    cache.ensure([audited(row_of(path), digest_of(path)) for path in paths], progress=False)
    assert encode.calls == assert_tight(tmp_path / "cache") == 1
    assert_live(cache, paths)


def test_audio_that_changed_since_the_audit_is_refused(audio: list[Path], tmp_path: Path) -> None:
    rows = [audited(row_of(path), digest_of(path)) for path in audio]
    soundfile.write(audio[2], np.zeros(400), 16_000)
    with pytest.raises(InputError, match="changed since the audit") as caught:
        cache_in(tmp_path / "cache", Counting()).ensure(rows, progress=False)
    assert [fault.where for fault in caught.value.faults] == [str(audio[2])]
    assert assert_tight(tmp_path / "cache") == 4


# Tails.


def test_cut_tails_have_entries_of_their_own(
    audio: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtrain.data.audio.trimmed_length", lambda wave, rate_hz, keep_s: int(rate_hz * keep_s))
    encode = Counting()
    for keep_tail_s in (None, 0.01, 0.02):
        cache = LatentCache(tmp_path / "cache", "key", encode, keep_tail_s)
        cache.ensure(rows_of(audio), progress=False)
        for path in audio:
            heard = read_wave(path)[: None if keep_tail_s is None else int(16_000 * keep_tail_s)]
            assert torch.equal(cache.latents(path), small_encode(heard))
            assert cache.seconds(path) == len(heard) / 16_000
    assert encode.calls == assert_tight(tmp_path / "cache") == 15


# Interruptions, faults, other encoders.


def test_an_interrupted_call_goes_on_where_it_was(audio: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        cache_in(tmp_path / "cache", Counting(breaks_at=4)).ensure(rows_of(audio), progress=False)
    assert assert_tight(tmp_path / "cache") == 3
    encode = Counting()
    cache = cache_in(tmp_path / "cache", encode)
    cache.ensure(rows_of(audio), progress=False)
    assert encode.calls == 2
    assert assert_tight(tmp_path / "cache") == 5
    assert_live(cache, audio)


def test_what_another_process_encodes_meanwhile_is_not_encoded_again(audio: list[Path], tmp_path: Path) -> None:
    """The other works between two clips of this one."""
    other = Counting()

    class Slow(Counting):
        def __call__(self, wave: np.ndarray) -> Tensor:
            if not self.calls:
                cache_in(tmp_path / "cache", other).ensure(rows_of(audio), progress=False)
            return super().__call__(wave)

    encode = Slow()
    cache = cache_in(tmp_path / "cache", encode)
    cache.ensure(rows_of(audio), progress=False)
    assert (other.calls, encode.calls) == (5, 1)
    assert assert_tight(tmp_path / "cache") == 5
    assert_live(cache, audio)


def test_every_clip_that_cannot_be_encoded_is_told_at_once(audio: list[Path], tmp_path: Path) -> None:
    audio[1].write_text("no audio")
    audio[3].unlink()
    with pytest.raises(InputError) as caught:
        cache_in(tmp_path / "cache", Counting()).ensure(rows_of(audio), progress=False)
    assert [fault.where for fault in caught.value.faults] == [str(audio[1]), str(audio[3])]
    assert assert_tight(tmp_path / "cache") == 3  # the others need not be encoded again


def test_of_many_faults_ten_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 more clips") as caught:
        cache_in(tmp_path).ensure(rows_of([tmp_path / f"{k}.wav" for k in range(13)]), progress=False)
    assert [Path(fault.where).stem for fault in caught.value.faults] == [*map(str, range(10)), "audio"]


@pytest.mark.parametrize("broken", [torch.full((2, 4, 3), torch.nan), torch.zeros(2, 3), torch.zeros(0, 4, 3)])
def test_latents_that_are_no_latents_are_refused(audio: list[Path], tmp_path: Path, broken: Tensor) -> None:
    with pytest.raises(InputError, match="not finite"):
        LatentCache(tmp_path / "cache", "key", lambda wave: broken, None).latents(audio[0])
    assert data_file(tmp_path / "cache").stat().st_size == 0


def test_another_encoder_has_entries_of_its_own(audio: list[Path], tmp_path: Path) -> None:
    one = LatentCache(tmp_path, "one", small_encode, None).latents(audio[0])
    other = LatentCache(tmp_path, "other", lambda wave: 2 * small_encode(wave), None).latents(audio[0])
    assert torch.equal(2 * one, other)
    assert index_file(tmp_path, "one") != index_file(tmp_path, "other")


def test_another_encoders_files_are_made_anew(
    audio: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LatentCache(tmp_path, "one", lambda wave: 2 * small_encode(wave), None).ensure(rows_of(audio), progress=False)
    shutil.copytree(
        index_file(tmp_path, "one").parent, tmp_path / index_file(tmp_path, "one").parent.name.replace("one", "key")
    )
    cache = cache_in(tmp_path, Counting())
    cache.ensure(rows_of(audio), progress=False)
    assert_live(cache, audio)
    assert "made anew" in capsys.readouterr().err
    assert assert_tight(tmp_path) == assert_tight(tmp_path, "one") == 5


# Damage.


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


def test_changed_audio_has_other_latents(audio: list[Path], tmp_path: Path) -> None:
    before = cache_in(tmp_path, Counting()).latents(audio[0])
    soundfile.write(audio[0], np.zeros(400), 16_000)
    after = cache_in(tmp_path, Counting()).latents(audio[0])
    assert torch.equal(after, small_encode(np.zeros(400, dtype=np.float32)))
    assert not torch.equal(before, after)


# Folders that cannot be written.


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


def test_progress_is_told_on_stderr(
    audio: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtrain.manifest.progress.PATIENCE_S", -1.0)
    cache_in(tmp_path, Counting()).ensure(rows_of(audio), progress=True)
    told = capsys.readouterr()
    assert "hashing audio" in told.err
    assert "encoding audio" in told.err
    assert told.out == ""


# The memory of file hashes.


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
