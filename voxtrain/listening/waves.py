"""WAV files of what was said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxtrain.durable import file_aside


def write_wave(path: Path, wave: NDArray[np.float32], sample_rate_hz: int) -> None:
    """Write a WAV file of 16 bits, complete or not at all."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside:
        soundfile.write(aside, np.clip(wave, -1, 1), sample_rate_hz, subtype="PCM_16", format="WAV")
