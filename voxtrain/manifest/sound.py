"""One audio file: what its header says and, where it is decoded, what its samples are like.

The manifest's own `duration` is not believed: it may have been written before a clip was cut, or by hand.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import soundfile
import xxhash
from numpy.typing import NDArray

from voxtrain.manifest.levels import Floats, Levels, hop_of, trimmed_length
from voxtrain.manifest.stated import HEAD_BYTES, Stated, is_mpeg, stated

__all__ = ["NO_FILE", "SOUND_VERSION", "Samples", "Sound", "kept_s", "read_sound", "trimmed_length", "unreadable"]

SOUND_VERSION = 1  # raise it when anything measured changes: sounds remembered from before are then read again
MOST_FRAMES = 2**53  # libsndfile reports 2^63-1 where a header does not say
BLOCK = 2**20  # samples decoded at a time, 4 MiB: most clips in one, and none takes more memory
SMALL_BLOCK = 2**12  # where decoding breaks off, to find out where
NO_FILE_CODE = 7  # "File does not exist": libsndfile says so of MP3 files without a whole frame, too
STEP = np.float32(2.0**-15)  # of 16-bit samples

Value = TypeVar("Value", np.float32, np.int16)


@dataclass(frozen=True, slots=True)
class Samples:
    """What the decoded samples of a file are like; of several channels, their mean."""

    digest: str  # 32 hex digits: of the samples as float32, the rate and the channels, whatever the file's format
    peak: float  # 1.0 is full scale
    rms_dbfs: float  # level without the mean; 0 is a square wave at full scale, -200 digital silence
    dc: float  # mean
    clipped_share: float  # of the samples
    leading_silence_s: float
    tail_silence_s: float  # of a silent clip, like the one before, all of it
    bandwidth_hz: float  # the highest frequency with energy; 0 where that cannot be told
    decoded_s: float  # less than `duration_s` where decoding breaks off


@dataclass(frozen=True, slots=True)
class Sound:
    """What one audio file holds."""

    missing: bool  # there is no such file
    reason: str  # what is wrong with it; empty: nothing
    duration_s: float | None  # as libsndfile sees it from the header; None: it cannot be used
    sample_rate_hz: int  # 0: it cannot be used
    channels: int
    samples: Samples | None  # None: not decoded
    stated_s: float | None = None  # what the header of a WAV file states, where the file holds less


NO_FILE = Sound(True, "there is no such file", None, 0, 0, None)


def unreadable(reason: str) -> Sound:
    """The Sound of a file that is there and cannot be used."""
    return Sound(False, reason, None, 0, 0, None)


def read_sound(path: str, decode: bool, status: os.stat_result | None = None) -> Sound:
    """What the file at `path` holds; with `decode` its samples are measured too. Raises nothing for a bad file.

    status: what `os.stat` has just said of it; None: ask.
    """
    try:
        size = _size(path) if status is None else _ordinary(status)
        if decode and path.endswith(".flac"):  # nothing in its header is news to the decoder
            return _opened(path, decode, None)
        head, plain = _head(path, size)
        if plain is not None and not decode:
            return _sound(plain.frames_held, plain.sample_rate_hz, plain.channels, None, plain)
        with _without_stderr() if is_mpeg(head) else contextlib.nullcontext():
            return _opened(path, decode, plain)
    except FileNotFoundError:
        return NO_FILE
    except soundfile.LibsndfileError as error:
        return unreadable(_said(error))
    except (_Unfit, RuntimeError, TypeError, ValueError, OSError) as error:  # TypeError: `.raw` has no header
        return unreadable(str(error))


class _Unfit(Exception):
    """Why a file that can be opened cannot be used."""


def _size(path: str) -> int:
    """Bytes in the file. Raises FileNotFoundError, and _Unfit for what is no ordinary file."""
    try:
        status = os.stat(path)  # noqa: PTH116  Path costs as much again as the call
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL inside the name
        raise FileNotFoundError from None
    except OSError as error:  # no permission, a loop of links, a name too long
        raise _Unfit(error.strerror or str(error)) from None
    return _ordinary(status)


def _ordinary(status: os.stat_result) -> int:
    """Bytes in the file. Raises _Unfit for what is no ordinary file."""
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait
        raise _Unfit("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no ordinary file")
    return status.st_size


def _head(path: str, size: int) -> tuple[bytes, Stated | None]:
    """The first bytes of the file, and what they state."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            head = os.read(file, HEAD_BYTES)
            return head, stated(file, head, size)
        finally:
            os.close(file)
    except OSError as error:
        raise _Unfit(error.strerror or str(error)) from None


def _opened(path: str, decode: bool, plain: Stated | None) -> Sound:
    with soundfile.SoundFile(path) as file:
        frames, rate_hz, channels = file.frames, file.samplerate, file.channels
        if frames <= 0 or rate_hz <= 0:
            raise _Unfit("it holds no samples")
        if frames >= MOST_FRAMES:
            raise _Unfit("its header does not say how long it is")
        if not decode:
            return _sound(frames, rate_hz, channels, None, plain)
        samples, why = _decoded(file, BLOCK)
    if why:
        with soundfile.SoundFile(path) as file:
            samples, why = _decoded(file, SMALL_BLOCK)
    if samples is None:
        raise _Unfit(why or "nothing can be decoded")
    return _sound(frames, rate_hz, channels, samples, plain, why)


def _sound(
    frames: int, rate_hz: int, channels: int, samples: Samples | None, plain: Stated | None, why: str = ""
) -> Sound:
    stated_s = None
    if plain is not None and plain.frames_held < plain.frames:
        stated_s = plain.frames / plain.sample_rate_hz
        why = f"its header states {stated_s:.3f} s"
    return Sound(False, why, frames / rate_hz, rate_hz, channels, samples, stated_s)


def kept_s(sound: Sound, keep_tail_s: float | None) -> float | None:
    """Seconds that are learnt from, where `keep_tail_s` of the silence at the end stay (null: all of it)."""
    if keep_tail_s is None or sound.samples is None or sound.duration_s is None:
        return sound.duration_s
    return sound.samples.decoded_s - max(0.0, sound.samples.tail_silence_s - keep_tail_s)


def _decoded(file: soundfile.SoundFile, block: int) -> tuple[Samples | None, str]:
    """What the samples are like, `block` of them decoded at a time, and why decoding broke off, if it did."""
    rate_hz, channels, why = file.samplerate, file.channels, ""
    hop = hop_of(rate_hz)
    count = max(hop, block // channels // hop * hop)
    read = _reader(file, (count,) if channels == 1 else (count, channels))
    digest, levels = xxhash.xxh3_128(struct.pack("<II", rate_hz, channels)), Levels(rate_hz)
    while levels.frames < file.frames:
        try:
            got = read()
        except soundfile.LibsndfileError as error:
            why = _said(error)
            break
        if not len(got):
            break
        digest.update(got.data)
        if not levels.add(got if channels == 1 else got.mean(axis=1, dtype=np.float32)):
            raise _Unfit("it holds samples that are not finite numbers, or far beyond full scale")
    return (_samples(levels, digest.hexdigest(), rate_hz) if levels.frames else None), why


def _reader(file: soundfile.SoundFile, shape: tuple[int, ...]) -> Callable[[], Floats]:
    """Gives the next frames of the file each time, as many as `shape` has room for; none at the end."""
    floats: Floats = _room(_OF_THREAD.floats, shape)
    if file.format != "WAV" or file.subtype != "PCM_16":
        return lambda: file.read(out=floats)
    shorts = _room(_OF_THREAD.shorts, shape)

    def read() -> Floats:
        got = file.read(out=shorts)  # libsndfile takes three times as long to make floats of these as numpy
        return np.multiply(got, STEP, out=floats[: len(got)])  # type: ignore[no-any-return]

    return read


def _samples(levels: Levels, digest: str, rate_hz: int) -> Samples:
    leading_s, tail_s = levels.silences_s()
    return Samples(
        digest=digest,
        peak=levels.peak,
        rms_dbfs=levels.rms_dbfs(),
        dc=levels.dc(),
        clipped_share=levels.clipped / levels.frames,
        leading_silence_s=leading_s,
        tail_silence_s=tail_s,
        bandwidth_hz=levels.bandwidth_hz(),
        decoded_s=levels.frames / rate_hz,
    )


def _said(error: soundfile.LibsndfileError) -> str:
    if error.code == NO_FILE_CODE:
        return "it is damaged or cut short"
    return str(error.error_string).removeprefix("Error : ") or f"libsndfile gave error {error.code}"


class _Rooms(threading.local):
    """Memory to decode into, the same each time: fresh memory costs up to a third of decoding."""

    def __init__(self) -> None:
        self.floats = np.empty(BLOCK, np.float32)
        self.shorts = np.empty(BLOCK, np.int16)


_OF_THREAD = _Rooms()


def _room(held: NDArray[Value], shape: tuple[int, ...]) -> NDArray[Value]:
    size = math.prod(shape)
    return held[:size].reshape(shape) if size <= len(held) else np.empty(shape, held.dtype)


_STDERR = threading.Lock()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """libmpg123 writes warnings to the standard error of the process itself, about every file that is cut short."""
    with _STDERR:
        kept = os.dup(2)
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nothing)
