"""Audio of any rate and channels becomes one channel at 16 kHz, or a fault that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxtrain.data.audio import read_wave
from voxtrain.fault import InputError


def tone(rate_hz: int, seconds: float = 0.5, pitch_hz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * pitch_hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def test_sixteen_kilohertz_mono_is_taken_as_it_is(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16_000), 16_000, subtype="FLOAT")
    wave = read_wave(tmp_path / "a.wav")
    assert wave.dtype == np.float32
    assert np.array_equal(wave, tone(16_000))


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate_hz), rate_hz, subtype="FLOAT")
    wave = read_wave(tmp_path / "a.wav")
    assert wave.shape == (8_000,)
    # away from the edges the tone at 16 kHz; the filter's ripple is under a hundredth of its height
    assert np.abs(wave - tone(16_000))[500:-500].max() < 0.004


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([tone(16_000), np.zeros(8_000, dtype=np.float32)], axis=1)
    soundfile.write(tmp_path / "a.flac", both, 16_000)
    assert np.abs(read_wave(tmp_path / "a.flac") - tone(16_000) / 2).max() < 2**-15  # 16-bit FLAC


@pytest.mark.parametrize(
    ("name", "told"),
    [("none.wav", "decoded"), ("text.wav", "decoded"), ("empty.wav", "no samples"), ("nan.wav", "finite")],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "text.wav").write_text("no audio at all")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan], dtype=np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=told) as caught:
        read_wave(tmp_path / name)
    assert caught.value.faults[0].where == str(tmp_path / name)


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_the_tail_is_cut_where_that_is_asked_for(tmp_path: Path, rate_hz: int) -> None:
    """Half a second of tone, then as much silence: of that a tenth of a second stays."""
    wave = np.concatenate([tone(rate_hz), np.zeros(rate_hz // 2, dtype=np.float32)])
    soundfile.write(tmp_path / "a.wav", wave, rate_hz, subtype="FLOAT")
    whole = read_wave(tmp_path / "a.wav")
    assert len(whole) == 16_000
    cut = read_wave(tmp_path / "a.wav", keep_tail_s=0.1)
    assert len(cut) == pytest.approx(9_600, abs=160)  # silence is measured in hops of 10 ms
    # at other rates the filter hears the new end, and sums in another order
    assert np.abs(cut[:9_000] - whole[:9_000]).max() <= (0 if rate_hz == 16_000 else 1e-6)
    assert np.array_equal(read_wave(tmp_path / "a.wav", keep_tail_s=2.0), whole)


def test_of_silence_a_sample_stays(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000, dtype=np.float32), 16_000)
    assert len(read_wave(tmp_path / "a.wav", keep_tail_s=0.0)) == 1
