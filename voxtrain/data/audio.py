"""Audio as the AudioVAE wants it: one channel at 16 kHz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from voxtrain.fault import Fault, InputError

SAMPLE_RATE_HZ = 16_000
"""What VoxCPM 2's AudioVAE encodes."""


def read_wave(path: Path, sample_rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    """[samples] float32: all channels averaged, resampled where the file has another rate.

    Raises InputError for a file that cannot be decoded, has no samples, or has samples that are not finite.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)  # [samples, channels]
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError, OSError) as error:
        raise InputError(_unusable(path, f"it cannot be decoded: {error}")) from None
    if not len(samples):
        raise InputError(_unusable(path, "it holds no samples"))
    wave = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise InputError(_unusable(path, "it holds samples that are not finite numbers"))
    return np.ascontiguousarray(wave) if rate_hz == sample_rate_hz else _resampled(wave, rate_hz, sample_rate_hz)


def _resampled(wave: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    import torch
    from torchaudio.functional import resample

    return np.asarray(resample(torch.from_numpy(np.ascontiguousarray(wave)), from_hz, to_hz).numpy())


def _unusable(path: Path, what: str) -> Fault:
    return Fault(str(path), what, "write the file again, or leave its row out of the manifest")
