"""What can be measured on a sample without a listener: length, level, silence at both ends, clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxtrain.manifest.scripts import spoken_characters

FRAME_S = 0.01
SILENCE_DB = -40.0
"""A frame this far below the loudest one is silence: speech spans about 30 dB, the noise between words lies lower."""

CLIPPED = 0.999
"""Samples from here up are at the ceiling of a 16-bit file."""

GATE_S = 0.4
"""The block that loudness is gated by; shorter sounds are repeated to fill one."""

INAUDIBLE = 1e-3
"""A sample whose peak is below -60 dB of full scale is called silent."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one sample."""

    seconds: float
    seconds_per_char: float  # of spoken characters (manifest/scripts.py): letters, and four for each digit
    peak: float  # of full scale
    rms_db: float  # below full scale
    loudness_lufs: float  # ITU-R BS.1770-4
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
        seconds_per_char=seconds_per_char(seconds, text),
        peak=peak,
        rms_db=_rms_db(wave),
        loudness_lufs=loudness_lufs(wave, sample_rate_hz),
        leading_silence_s=leading,
        tail_silence_s=tail,
        clipped_share=float(np.mean(np.abs(wave) >= CLIPPED)),
    )


def seconds_per_char(seconds: float, text: str) -> float:
    """How long a spoken character takes, in seconds."""
    return seconds / max(1, spoken_characters(text))


def loudness_lufs(wave: NDArray[np.float32], sample_rate_hz: int) -> float:
    """Integrated loudness of [samples] by ITU-R BS.1770-4. What its gate finds no sound in counts by its power."""
    import torch
    from torchaudio.functional import loudness

    shortest = math.ceil(GATE_S * sample_rate_hz)
    whole = np.tile(wave, -(-shortest // len(wave)))
    found = float(loudness(torch.from_numpy(whole.astype(np.float32))[None], sample_rate_hz))
    return found if math.isfinite(found) else _rms_db(wave)


def _rms_db(wave: NDArray[np.float32]) -> float:
    return 20 * math.log10(float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))))


def silence_at_ends(wave: NDArray[np.float32], sample_rate_hz: int) -> tuple[float, float]:
    """Seconds of silence before the first and after the last frame of 10 ms that is no silence."""
    size = max(1, round(FRAME_S * sample_rate_hz))
    padded = np.pad(wave.astype(np.float64), (0, -len(wave) % size))
    level = np.sqrt(np.mean(padded.reshape(-1, size) ** 2, axis=1))
    heard = np.flatnonzero(level >= level.max() * 10 ** (SILENCE_DB / 20))
    after = max(0, len(wave) - (int(heard[-1]) + 1) * size)
    return int(heard[0]) * size / sample_rate_hz, after / sample_rate_hz
