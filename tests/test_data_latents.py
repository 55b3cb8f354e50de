"""Latents are computed once, equal live encoding, and never come from an entry that is not whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from data_material import row_of, small_encode
from latent_material import (
    Counting,
    Interrupted,
    assert_live,
    assert_tight,
    audited,
    cache_in,
    data_file,
    index_file,
    rows_of,
    write_clips,
)
from torch import Tensor

from voxtrain.data.audio import read_wave
from voxtrain.data.latents import LatentCache
from voxtrain.fault import InputError
from voxtrain.manifest.sound import read_sound


@pytest.fixture
def audio(tmp_path: Path) -> list[Path]:
    """Five clips."""
    return write_clips(tmp_path)


def digest_of(path: Path) -> str:
    samples = read_sound(str(path), decode=True).samples
    assert samples is not None
    return samples.digest


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


def test_changed_audio_has_other_latents(audio: list[Path], tmp_path: Path) -> None:
    before = cache_in(tmp_path, Counting()).latents(audio[0])
    soundfile.write(audio[0], np.zeros(400), 16_000)
    after = cache_in(tmp_path, Counting()).latents(audio[0])
    assert torch.equal(after, small_encode(np.zeros(400, dtype=np.float32)))
    assert not torch.equal(before, after)


def test_progress_is_told_on_stderr(
    audio: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtrain.progress.PATIENCE_S", -1.0)
    cache_in(tmp_path, Counting()).ensure(rows_of(audio), progress=True)
    told = capsys.readouterr()
    assert "hashing audio" in told.err
    assert "encoding audio" in told.err
    assert told.out == ""
