"""What the headers of WAV and FLAC files state, read without a decoder: libsndfile takes three to seven times as long.

Only what is plain is answered: PCM or float WAV, FLAC with its number of samples. Everything else is None, for
libsndfile to open. Where there is an answer it is libsndfile's, and a WAV cut short still states its old length.
Formats: RIFF WAVE (Microsoft/IBM 1991, RFC 2361); FLAC (RFC 9639, section 8).
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

HEAD_BYTES = 512  # the chunks before a WAV's samples are shorter, as a rule
MOST_BLOCKS = 8  # of FLAC metadata
PADDING, SEEK_TABLE, COMMENTS = 1, 3, 4  # the kinds of blocks that are plain; pictures are not
NOT_KNOWN = 0x7F000000  # bytes: programs that write to a pipe state 2 or 4 GiB, or a little less
PCM, FLOAT = 1, 3  # the format tags that are plain
SAMPLE_BYTES = {PCM: (1, 2, 3, 4), FLOAT: (4, 8)}
MOST_CHANNELS, MOST_HZ = 64, 655_350  # libsndfile takes more channels in WAV, and FLAC ends there in Hz


class Stated(NamedTuple):
    """What a header states, and how many frames the file can hold of them."""

    frames: int
    frames_held: int  # fewer where a WAV was cut short
    sample_rate_hz: int
    channels: int


def stated(file: int, head: bytes, size: int) -> Stated | None:
    """What the header of a file states, `head` being its first HEAD_BYTES; None where that is not plain.

    file: its descriptor; size: in bytes. Raises OSError.
    """
    if head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt ":
        return _wav(head, size)
    return _flac(file, head, size) if head[:4] == b"fLaC" else None


def is_mpeg(head: bytes) -> bool:
    """Whether a file that begins like this may be MP3: a tag, or the eleven bits that a frame begins with."""
    return head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")


def _wav(head: bytes, size: int) -> Stated | None:
    kind = channels = rate_hz = sample_bytes = 0
    at = 12
    while at + 24 <= len(head):
        name, length = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
        at += 8
        if name == b"fmt " and length >= 16:
            kind, channels, rate_hz, _, align, bits = struct.unpack_from("<HHIIHH", head, at)
            sample_bytes = bits // 8
            plain = bits % 8 == 0 and sample_bytes in SAMPLE_BYTES.get(kind, ()) and align == channels * sample_bytes
            if not (plain and 0 < channels <= MOST_CHANNELS and 0 < rate_hz <= MOST_HZ):
                return None
        elif name == b"data":
            return _of_data(length, size - at, channels * sample_bytes, rate_hz, channels)
        elif not (name == b"fact" and length == 4) and not (
            name == b"LIST" and _is_info(head[at : at + length], length)
        ):
            return None
        at += length + length % 2
    return None


def _is_info(content: bytes, length: int) -> bool:
    """Whether a chunk is a whole list of names and such, as ffmpeg writes one of a few bytes."""
    if len(content) < length or content[:4] != b"INFO":
        return False
    at = 4
    while at + 8 <= length:
        part = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + part + part % 2
    return at == length


def _of_data(length: int, held: int, frame_bytes: int, rate_hz: int, channels: int) -> Stated | None:
    if not frame_bytes or not length or held < frame_bytes or length >= NOT_KNOWN:
        return None
    return Stated(length // frame_bytes, min(length, held) // frame_bytes, rate_hz, channels)


def _flac(file: int, head: bytes, size: int) -> Stated | None:
    if len(head) < 42 or head[4] & 127 or head[5:8] != b"\0\0\x22":  # STREAMINFO comes first and is 34 bytes long
        return None
    packed = int.from_bytes(head[18:26], "big")  # rate 20 bits, channels - 1: 3, bits - 1: 5, frames 36
    rate_hz, channels, bits, frames = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & 2**36 - 1
    last, at = head[4] >> 7, 42
    for _ in range(MOST_BLOCKS):
        block = head[at : at + 4] if at + 4 <= len(head) else os.pread(file, 4, at)
        if last or len(block) < 4:
            break
        kind, length = block[0] & 127, int.from_bytes(block[1:4], "big")
        if kind == COMMENTS:
            is_plain = _whole(_between(file, head, at + 4, length))
        else:
            is_plain = kind == PADDING or (kind == SEEK_TABLE and length % 18 == 0)
        if not is_plain:
            return None
        last, at = block[0] >> 7, at + 4 + length
    whole = last and at + 2 < size and block[0] == 0xFF and block[1] & 0xFE == 0xF8  # a frame's sync code
    if not (whole and frames and 0 < rate_hz <= MOST_HZ and bits in (8, 16, 24)):
        return None
    return Stated(frames, frames, rate_hz, channels)


def _between(file: int, head: bytes, start: int, length: int) -> bytes:
    return head[start : start + length] if start + length <= len(head) else os.pread(file, length, start)


def _whole(comments: bytes) -> bool:
    """Whether the comments fill their block: where they do not, libFLAC opens nothing."""
    at = 4 + int.from_bytes(comments[:4], "little")  # behind the name of the encoder
    count = int.from_bytes(comments[at : at + 4], "little")
    at += 4
    for _ in range(min(count, len(comments))):
        at += 4 + int.from_bytes(comments[at : at + 4], "little")
    return at == len(comments)
