"""Audio as the AudioVAE wants it: one channel at 16 kHz, its tail silence cut where that is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.sound import trimmed_length

SAMPLE_RATE_HZ = 16_000
"""What VoxCPM 2's AudioVAE encodes."""


def read_wave(path: Path, keep_tail_s: float | None = None) -> np.ndarray:
    """[samples] float32 at 16 kHz: all channels averaged, resampled where the file has another rate.

    keep_tail_s: of the silence at the end, how much stays; null: all of it.
    Raises InputError for a file that cannot be decoded, has no samples, or has samples that are not finite.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)  # [samples, channels]
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise InputError(unusable(path, f"it cannot be decoded: {error}")) from None
    if not len(samples):
        raise InputError(unusable(path, "it holds no samples"))
    wave = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise InputError(unusable(path, "it holds samples that are not finite numbers"))
    if keep_tail_s is not None:
        wave = _trimmed(wave, rate_hz, keep_tail_s)
    return np.ascontiguousarray(wave) if rate_hz == SAMPLE_RATE_HZ else _resampled(wave, rate_hz)


def _trimmed(wave: np.ndarray, rate_hz: int, keep_tail_s: float) -> np.ndarray:
    return wave[: max(1, trimmed_length(wave, rate_hz, keep_tail_s))]  # of silence alone, a sample stays


def _resampled(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    import torch
    from torchaudio.functional import resample

    return np.asarray(resample(torch.from_numpy(np.ascontiguousarray(wave)), rate_hz, SAMPLE_RATE_HZ).numpy())


def unusable(audio: Path, what: str) -> Fault:
    """The fault of one audio file."""
    return Fault(str(audio), what, "write the file again, or leave its row out of the manifest")
