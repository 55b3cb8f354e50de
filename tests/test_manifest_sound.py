"""One audio file: what its header says, what is measured of its samples, and that no file at all breaks the reader."""

from __future__ import annotations

import math
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from manifest_material import write_tone

from voxtrain.manifest import sound as sound_module
from voxtrain.manifest.sound import NO_FILE, Samples, Sound, kept_s, read_sound, trimmed_length

RATE_HZ = 16_000
SHORTS = np.random.default_rng(1).normal(0, 3000, (8_000, 2)).clip(-32768, 32767).astype(np.int16)


def written(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ, subtype: str | None = None) -> str:
    soundfile.write(path, samples, rate_hz, subtype=subtype)
    return str(path)


def measured(path: str | Path) -> Samples:
    found = read_sound(str(path), decode=True)
    assert found.samples is not None, found
    return found.samples


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE_HZ)).astype(np.float32)


def tone(seconds: float, hz: float = 200.0, peak: float = 0.5) -> np.ndarray:
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


# What a header says.


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff", "a.au", "a.w64", "a.caf", "a.ogg", "a.mp3", "a.rf64"])
def test_headers_of_every_format(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, SHORTS, 22_050)
    expected = Sound(False, "", 8_000 / 22_050, 22_050, 2, None)
    assert read_sound(path, decode=False) == expected
    found = read_sound(path, decode=True)
    assert (found.duration_s, found.sample_rate_hz, found.channels) == (8_000 / 22_050, 22_050, 2)
    assert found.samples is not None
    assert found.samples.decoded_s == found.duration_s


def test_what_is_no_audio_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "empty.flac").touch()
    (tmp_path / "noise.raw").write_bytes(b"\0" * 100)
    (tmp_path / "noise.mp3").write_bytes(random.Random(0).randbytes(5_000))
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(tmp_path / "pipe.flac")
    written(tmp_path / "nothing.wav", SHORTS[:0])
    names = ["text.wav", "empty.flac", "noise.raw", "noise.mp3", "loop.wav", "pipe.flac", "nothing.wav", ".", "x" * 300]
    for name in names:
        for decode in (False, True):
            found = read_sound(str(tmp_path / name), decode)
            assert (found.duration_s, found.missing, found.samples) == (None, False, None), name
            assert found.reason, name
    for name in ("none.wav", "nothing.wav/none.flac", "nul\0.wav", "half\ud800.flac", "gone.flac"):
        for decode in (False, True):
            assert read_sound(str(tmp_path / name), decode) == NO_FILE


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(write_tone(tmp_path / "tone.wav", 0.5))
    assert read_sound(str(tmp_path / "link.wav"), decode=False).duration_s == 0.5


# Files that were cut short.


def cut(path: str, share: float) -> str:
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: int(len(whole) * share)])
    return path


def test_a_wav_cut_short_is_seen_in_its_header(tmp_path: Path) -> None:
    path = cut(written(tmp_path / "a.wav", SHORTS[:, 0]), 0.5)
    for decode in (False, True):
        found = read_sound(path, decode)
        assert found.duration_s == ((44 + 16_000) // 2 - 44) // 2 / RATE_HZ
        assert found.stated_s == 0.5
        assert "its header states 0.500 s" in found.reason
        assert found.samples is None or found.samples.decoded_s == found.duration_s


@pytest.mark.parametrize("stated_bytes", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0])
def test_a_wav_from_a_pipe_states_no_length_and_is_whole(tmp_path: Path, stated_bytes: int) -> None:
    path = Path(written(tmp_path / "a.wav", SHORTS[:, 0]))
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", stated_bytes)
    path.write_bytes(content)
    found = read_sound(str(path), decode=False)
    assert found.stated_s is None
    assert found.duration_s in {0.5, None}  # libsndfile believes a zero


def test_a_flac_cut_short_breaks_off_when_decoded(tmp_path: Path) -> None:
    path = cut(written(tmp_path / "a.flac", np.concatenate([SHORTS[:, 0]] * 4)), 0.5)
    assert read_sound(path, decode=False).duration_s == 2.0
    found = read_sound(path, decode=True)
    assert (found.duration_s, found.stated_s) == (2.0, None)
    assert found.samples is not None
    assert 0.5 < found.samples.decoded_s < 1.1
    assert found.reason


def test_a_flac_with_a_hole_breaks_off_there(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "a.flac", np.concatenate([SHORTS[:, 0]] * 4)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
    path.write_bytes(content)
    found = read_sound(str(path), decode=True)
    assert found.reason
    assert found.samples is not None
    assert found.samples.decoded_s < 1.2


def test_a_flac_without_a_whole_frame_is_unreadable(tmp_path: Path) -> None:
    found = read_sound(cut(written(tmp_path / "a.flac", SHORTS[:, 0]), 0.05), decode=True)
    assert (found.duration_s, found.samples) == (None, None)
    assert found.reason


def test_an_mp3_cut_short_gives_less_and_says_nothing_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = cut(written(tmp_path / "a.mp3", np.concatenate([SHORTS[:, 0]] * 4)), 0.5)
    found = read_sound(path, decode=True)
    assert found.duration_s == 2.0
    assert found.samples is not None
    assert 0.8 < found.samples.decoded_s < 1.1
    os.write(2, b"heard again\n")
    assert capfd.readouterr().err == "heard again\n"


def test_what_is_left_of_other_formats_is_read_or_refused(tmp_path: Path) -> None:
    for name in ("a.ogg", "a.aiff", "a.w64", "a.caf", "a.au", "a.mp3", "a.flac", "a.wav"):
        for share in (0.003, 0.1, 0.9, 0.999):
            found = read_sound(cut(written(tmp_path / name, SHORTS), share), decode=True)
            assert (found.duration_s is None) == (found.samples is None)
            assert found.reason or found.samples is not None


# What is measured.


def test_the_digest_is_of_the_samples_whatever_the_format(tmp_path: Path) -> None:
    names = ("a.wav", "a.flac", "a.aiff", "a.au", "a.w64", "a.caf", "a.rf64")
    same = {measured(written(tmp_path / name, SHORTS)) for name in names}
    same.add(measured(written(tmp_path / "float.wav", (SHORTS / 32768).astype(np.float32), subtype="FLOAT")))
    same.add(measured(written(tmp_path / "deep.flac", SHORTS.astype(np.int32) * 65536, subtype="PCM_24")))
    assert len(same) == 1
    assert len(next(iter(same)).digest) == 32
    changed = SHORTS.copy()
    changed[-1, 1] += 1
    others = [
        measured(written(tmp_path / "changed.wav", changed)),
        measured(written(tmp_path / "shorter.wav", SHORTS[:-1])),
        measured(written(tmp_path / "faster.wav", SHORTS, 22_050)),
        measured(written(tmp_path / "one.wav", SHORTS.reshape(-1))),
        *same,
    ]
    assert len({one.digest for one in others}) == 5


def test_several_channels_are_measured_as_their_mean(tmp_path: Path) -> None:
    wave = noise(1.0)
    several = measured(written(tmp_path / "a.wav", np.stack([wave, -wave, wave, wave], axis=1), subtype="FLOAT"))
    one = measured(written(tmp_path / "b.wav", wave / 2, subtype="FLOAT"))
    assert several.digest != one.digest
    assert (several.peak, several.bandwidth_hz) == (one.peak, one.bandwidth_hz)
    assert several.rms_dbfs == pytest.approx(one.rms_dbfs, abs=1e-4)


def test_levels(tmp_path: Path) -> None:
    """Tolerances: 16-bit rounding, and sums in float32."""
    found = measured(written(tmp_path / "sine.wav", 0.25 + tone(1.0)))
    assert found.peak == pytest.approx(0.75, abs=1e-4)
    assert found.dc == pytest.approx(0.25, abs=1e-4)
    assert found.rms_dbfs == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)), abs=0.01)
    assert found.clipped_share == 0.0


def test_a_constant_is_silent_and_has_an_offset(tmp_path: Path) -> None:
    found = measured(written(tmp_path / "a.wav", np.full(RATE_HZ, 0.5, np.float32)))
    assert found.dc == pytest.approx(0.5, abs=1e-4)
    assert found.rms_dbfs < -70  # float32 keeps that much apart from the square of the mean
    assert (found.leading_silence_s, found.tail_silence_s, found.bandwidth_hz) == (1.0, 1.0, 0.0)


def test_clipped_samples_are_counted_on_both_sides(tmp_path: Path) -> None:
    wave = tone(1.0)
    wave[100:110], wave[500:505] = 1.0, -1.0
    assert measured(written(tmp_path / "a.wav", wave)).clipped_share == 15 / RATE_HZ
    assert measured(written(tmp_path / "b.wav", wave * 4, subtype="FLOAT")).clipped_share > 0.5
    assert measured(written(tmp_path / "c.wav", wave * 30_000, subtype="FLOAT")).peak == 30_000


SILENCES = [
    (silence(0.5), silence(0.7), 0.5, 0.7),
    (noise(0.5, 1e-4), noise(0.7, 1e-4, seed=1), 0.5, 0.7),  # -80 dB
    (noise(0.5, 0.0028), noise(0.7, 0.0028, seed=1), 0.5, 0.7),  # 35 dB under the speech: room tone
    (noise(0.5, 0.01), silence(0.7), 0.0, 0.7),  # 24 dB under it: a quiet sound
    (silence(0.0), silence(0.0), 0.0, 0.0),
]


@pytest.mark.parametrize(("before", "after", "leading_s", "tail_s"), SILENCES)
def test_silence_at_the_ends(
    tmp_path: Path, before: np.ndarray, after: np.ndarray, leading_s: float, tail_s: float
) -> None:
    wave = np.concatenate([before, noise(1.0, 0.16, seed=2), after])
    path = written(tmp_path / "a.wav", wave)
    found = measured(path)
    assert found.leading_silence_s == pytest.approx(leading_s, abs=0.0101)  # a hop
    assert found.tail_silence_s == pytest.approx(tail_s, abs=0.0101)
    decoded = soundfile.read(path, dtype="float32")[0]
    for keep_s in (0.0, 0.2, 5.0):
        length = trimmed_length(decoded, RATE_HZ, keep_s)
        assert length == len(wave) - max(0, round((found.tail_silence_s - keep_s) * RATE_HZ))
        kept = kept_s(read_sound(path, decode=True), keep_s)
        assert kept == pytest.approx(length / RATE_HZ, abs=1e-9)


def test_of_a_silent_clip_all_is_silence(tmp_path: Path) -> None:
    found = measured(written(tmp_path / "a.wav", silence(1.5)))
    assert (found.peak, found.rms_dbfs, found.dc) == (0.0, -200.0, 0.0)
    assert (found.leading_silence_s, found.tail_silence_s) == (1.5, 1.5)
    assert trimmed_length(silence(1.5), RATE_HZ, 0.25) == RATE_HZ // 4
    assert trimmed_length(silence(0.0), RATE_HZ, 0.25) == 0


@pytest.mark.parametrize("frames", [2, 3, 100, 160, 161, 511, 513])
def test_clips_of_a_few_samples_are_measured(tmp_path: Path, frames: int) -> None:
    wave = noise(1.0)[:frames]
    found = measured(written(tmp_path / "a.wav", wave, subtype="FLOAT"))
    assert found.peak == np.abs(wave).max()
    assert found.decoded_s == frames / RATE_HZ
    assert (found.tail_silence_s, found.bandwidth_hz) == (0.0, 0.0)


def low_passed(wave: np.ndarray, share: float) -> np.ndarray:
    spectrum = np.fft.rfft(wave)
    spectrum[round(len(spectrum) * share) :] = 0
    return np.fft.irfft(spectrum, len(wave)).astype(np.float32)


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5, 0.25])
def test_bandwidth(tmp_path: Path, share: float) -> None:
    """As 16 bits leave it: rounding fills the band with a noise that must not count."""
    found = measured(written(tmp_path / "a.wav", low_passed(noise(3.0), share)))
    assert found.bandwidth_hz / (RATE_HZ / 2) == pytest.approx(share, abs=0.02)


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, -np.inf, 1e30):
        wave = noise(0.5)
        wave[4_000] = value
        found = read_sound(written(tmp_path / "a.wav", wave, subtype="FLOAT"), decode=True)
        assert (found.duration_s, found.samples) == (None, None)
        assert "not finite" in found.reason


def test_long_files_are_measured_in_blocks_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = [low_passed(noise(1.0, seed=n), 0.5) * (n % 3 + 1) / 4 for n in range(4)]
    wave = np.concatenate([silence(0.7), *speech, silence(1.33), silence(0.0055)])
    for name, samples in (("a.flac", wave), ("b.wav", np.stack([wave, wave], axis=1)), ("c.ogg", wave)):
        path = written(tmp_path / name, samples)
        whole = measured(path)
        with monkeypatch.context() as patched:
            patched.setattr(sound_module, "BLOCK", 10_000)
            parts = measured(path)
        exact = ("digest", "peak", "clipped_share", "leading_silence_s", "tail_silence_s", "decoded_s")
        assert {key: getattr(parts, key) for key in exact} == {key: getattr(whole, key) for key in exact}
        assert parts.rms_dbfs == pytest.approx(whole.rms_dbfs, abs=1e-4)
        assert parts.dc == pytest.approx(whole.dc, abs=1e-6)
    path = written(tmp_path / "d.wav", low_passed(noise(4.0), 0.5))
    monkeypatch.setattr(sound_module, "BLOCK", 10_000)
    assert measured(path).bandwidth_hz == pytest.approx(4_000, abs=150)


@pytest.mark.slow
def test_real_speech(shared: Path) -> None:
    """Of every clip: something is heard, and most of its band is filled (but for one clip of LibriTTS)."""
    found = [measured(path) for path in sorted((shared / "speech" / "audio").glob("*.*"))]
    assert len(found) == 176
    assert min(one.rms_dbfs for one in found) > -30
    assert max(one.clipped_share for one in found) < 0.001
    assert max(one.tail_silence_s for one in found) < 0.6
    assert len({one.digest for one in found}) == 176
