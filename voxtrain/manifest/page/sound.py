"""The first seconds of a clip, compressed, as a page carries them inside a data: address."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

LONGEST_S = 10.0
MOST_VALUES = 8_000_000  # samples x channels that are read at most: a header may claim a thousand channels
HIGHEST_HZ = 48_000  # of MP3 and of most ears; finer sound is averaged down to it
COMPRESSION = 0.8  # libsndfile's scale from 0 (best) to 1 (smallest): MP3 takes about 3.5 kB a second of speech
KINDS = (("MP3", "MPEG_LAYER_III", "audio/mpeg"), ("FLAC", "PCM_16", "audio/flac"))
"""What to compress to, best first. Every browser plays MP3; it refuses unusual rates, and may not be built in.

Vorbis would do in half the time, but libsndfile numbers each Ogg stream at random, so that no two pages would be equal,
and libvorbis ends the process above 200 kHz.
"""


class NoPlayer(Exception):
    """Why a clip cannot be played, in words."""


def data_address(path: str) -> str:
    """The first LONGEST_S seconds of the file, mixed to one channel, as a data: address. Raises NoPlayer."""
    wave, rate_hz = _coarse(*_beginning(path))
    for container, subtype, kind in KINDS:
        if container in soundfile.available_formats() and subtype in soundfile.available_subtypes(container):
            try:
                content = _compressed(wave, rate_hz, container, subtype)
            except (soundfile.SoundFileError, RuntimeError, ValueError):
                continue
            return f"data:{kind};base64,{base64.b64encode(content).decode()}"
    raise NoPlayer(f"sound at {rate_hz:,} Hz cannot be compressed")


def _beginning(path: str) -> tuple[NDArray[np.float32], int]:
    """The wave [N], in -1..1 and without NaN, and its rate."""
    try:
        if not Path(path).is_file():  # a pipe would wait for a writer
            raise NoPlayer("it is no ordinary file" if Path(path).exists() else "there is no such file")
        with soundfile.SoundFile(path) as sound:
            rate_hz, channels = sound.samplerate, sound.channels
            frames = min(int(LONGEST_S * rate_hz), MOST_VALUES // channels)
            wave = sound.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise NoPlayer(error.error_string.strip().rstrip(".")) from None
    except (RuntimeError, TypeError, ValueError, OSError) as error:  # TypeError: `.raw` has no header
        raise NoPlayer(str(error) or type(error).__name__) from None
    if not len(wave):
        raise NoPlayer("it holds no samples")
    return np.clip(np.nan_to_num(wave), -1.0, 1.0).mean(axis=1), rate_hz


def _coarse(wave: NDArray[np.float32], rate_hz: int) -> tuple[NDArray[np.float32], int]:
    """The wave at HIGHEST_HZ or below, by averaging neighbours; as it is where its rate does not divide."""
    factor = math.ceil(rate_hz / HIGHEST_HZ)
    if factor == 1 or rate_hz % factor or len(wave) < factor:
        return wave, rate_hz
    whole = wave[: len(wave) // factor * factor]
    return whole.reshape(-1, factor).mean(axis=1), rate_hz // factor


def _compressed(wave: NDArray[np.float32], rate_hz: int, container: str, subtype: str) -> bytes:
    held, mode = io.BytesIO(), "VARIABLE" if container == "MP3" else None
    soundfile.write(held, wave, rate_hz, subtype, format=container, compression_level=COMPRESSION, bitrate_mode=mode)
    return held.getvalue()
