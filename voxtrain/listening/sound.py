"""A sample as a page carries it: compressed sound inside a data: address, and a small picture of its waveform."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import soundfile
from numpy.typing import NDArray

from voxtrain.listening.measure import Measures

KINDS = (("MP3", "MPEG_LAYER_III", "audio/mpeg"), ("OGG", "VORBIS", "audio/ogg"))
"""What to compress to, best first: every browser plays MP3; libsndfile can be built without its encoder."""

COMPRESSION = 0.5
"""libsndfile's scale from 0 (best) to 1 (smallest): with a variable bit rate about 7 kB a second of speech."""

BARS, HALF_HEIGHT = 72, 14.0

LOUDNESS_LUFS, PEAK_DB = -23.0, -1.0
"""What all sounds of the page are brought to (EBU R128): of two samples the louder one seems the better."""


def data_address(wave: NDArray[np.float32], rate_hz: int) -> str:
    """[samples] as a data: address."""
    for name, subtype, kind in KINDS:
        if name in soundfile.available_formats() and subtype in soundfile.available_subtypes(name):
            held, mode = io.BytesIO(), "VARIABLE" if name == "MP3" else None
            soundfile.write(held, wave, rate_hz, subtype, format=name, compression_level=COMPRESSION, bitrate_mode=mode)
            return _address(kind, held.getvalue())
    held = io.BytesIO()
    soundfile.write(held, wave, rate_hz, "PCM_16", format="WAV")
    return _address("audio/wav", held.getvalue())


def gain_db(measures: Measures) -> float:
    """What brings a sound to LOUDNESS_LUFS; less where its peak would be above PEAK_DB."""
    return min(LOUDNESS_LUFS - measures.loudness_lufs, PEAK_DB - 20 * math.log10(measures.peak))


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def waveform_path(wave: NDArray[np.float32]) -> str:
    """The `d` of an SVG path, BARS wide and 2 x HALF_HEIGHT high: the outline of the loudest samples of each part.

    Heights are shares of full scale by their square root, so that quiet speech is still seen.
    """
    parts = np.array_split(np.abs(wave), BARS)
    heights = [max(0.4, HALF_HEIGHT * float(part.max(initial=0)) ** 0.5) for part in parts]
    above = "".join(f"H{x}V{HALF_HEIGHT - height:.1f}" for x, height in enumerate(heights))
    below = "".join(f"H{x + 1}V{HALF_HEIGHT + heights[x]:.1f}" for x in reversed(range(BARS)))
    return f"M0 {HALF_HEIGHT:g}{above}{below}H0Z"
