"""What can be measured on a sample without a listener: length, level, silence at both ends, clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_S = 0.01
SILENCE_DB = -40.0
"""A frame this far below the loudest one is silence: speech spans about 30 dB, the noise between words lies lower."""

CLIPPED = 0.999
"""Samples from here up are at the ceiling of a 16-bit file."""

INAUDIBLE = 1e-3
"""A sample whose peak is below -60 dB of full scale is called silent."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one sample."""

    seconds: float
    seconds_per_char: float
    peak: float  # of full scale
    rms_db: float  # below full scale
    leading_silence_s: float
    tail_silence_s: float
    clipped_share: float


def measure(wave: NDArray[np.float32], sample_rate_hz: int, text: str) -> Measures:
    """Measure [samples]; raises ValueError, saying why, for what is no sound: nothing, not finite, silent."""
    if wave.size == 0:
        raise ValueError("no sample came out")
    if not np.isfinite(wave).all():
        raise ValueError("it holds values that are not finite")
    peak = float(np.abs(wave).max())
    if peak < INAUDIBLE:
        raise ValueError(f"it is silent: the peak is {peak:.1e} of full scale")
    seconds = len(wave) / sample_rate_hz
    leading, tail = silence_at_ends(wave, sample_rate_hz)
    return Measures(
        seconds=seconds,
        seconds_per_char=seconds / len(text),
        peak=peak,
        rms_db=20 * math.log10(float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))),
        leading_silence_s=leading,
        tail_silence_s=tail,
        clipped_share=float(np.mean(np.abs(wave) >= CLIPPED)),
    )


def silence_at_ends(wave: NDArray[np.float32], sample_rate_hz: int) -> tuple[float, float]:
    """Seconds of silence before the first and after the last frame of 10 ms that is no silence."""
    size = max(1, round(FRAME_S * sample_rate_hz))
    padded = np.pad(wave.astype(np.float64), (0, -len(wave) % size))
    level = np.sqrt(np.mean(padded.reshape(-1, size) ** 2, axis=1))
    heard = np.flatnonzero(level >= level.max() * 10 ** (SILENCE_DB / 20))
    after = max(0, len(wave) - (int(heard[-1]) + 1) * size)
    return int(heard[0]) * size / sample_rate_hz, after / sample_rate_hz
