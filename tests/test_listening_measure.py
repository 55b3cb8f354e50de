"""What is measured on a sample, on sounds whose measures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from voxtrain.listening.measure import measure, silence_at_ends

RATE_HZ = 48_000


def tone(seconds: float, peak: float) -> np.ndarray:
    """A sine of 1 kHz."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (peak * np.sin(2 * np.pi * 1000 * time_s)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def test_a_tone_between_silences() -> None:
    wave = np.concatenate([silence(0.25), tone(1.0, 0.5), silence(0.75)])
    found = measure(wave, RATE_HZ, "ten chars.")
    assert found.seconds == 2.0
    assert found.seconds_per_char == 0.25  # eight letters are spoken
    assert found.peak == 0.5
    assert found.rms_db == pytest.approx(20 * math.log10(0.5 / math.sqrt(2) / math.sqrt(2)), abs=1e-4)  # half is silent
    assert (found.leading_silence_s, found.tail_silence_s) == (0.25, 0.75)
    assert found.clipped_share == 0


def test_a_noise_far_below_the_speech_is_silence_and_one_above_is_not() -> None:
    loud = tone(0.5, 0.5)
    assert silence_at_ends(np.concatenate([loud, tone(0.5, 0.5 * 10 ** (-41 / 20))]), RATE_HZ) == (0, 0.5)
    assert silence_at_ends(np.concatenate([loud, tone(0.5, 0.5 * 10 ** (-39 / 20))]), RATE_HZ) == (0, 0)


def test_clipped_samples_are_counted() -> None:
    wave = tone(1.0, 0.5)
    wave[:4800] = 1.0
    assert measure(wave, RATE_HZ, "x").clipped_share == 0.1


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (silence(0.0), "no sample"),
        (silence(1.0), "silent"),
        (tone(1.0, 0.0009), "silent"),
        (np.array([0.5, np.nan], np.float32), "not finite"),
        (np.array([0.5, -np.inf], np.float32), "not finite"),
    ],
)
def test_what_is_no_sound_is_told(wave: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measure(wave, RATE_HZ, "x")


@given(st_numpy.arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1, 1, width=32)))
def test_silences_never_exceed_the_sample(wave: np.ndarray) -> None:
    wave = np.append(wave, np.float32(0.5))
    leading, tail = silence_at_ends(wave, RATE_HZ)
    assert leading >= 0
    assert tail >= 0
    assert leading + tail < len(wave) / RATE_HZ
