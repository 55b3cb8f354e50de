"""The rules that look at a row's audio: whether it can be read, how long it is, and what its samples are like.

A rule of samples finds nothing where the audio was not decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import normpath
from typing import ClassVar

from voxtrain.manifest.rules import Candidate, Finding, odd_values
from voxtrain.manifest.scripts import spoken
from voxtrain.manifest.sound import kept_s


@dataclass(frozen=True, slots=True)
class MissingAudio:
    """No path, or no file at it; reference audio likewise."""

    name: ClassVar[str] = "missing_audio"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the path, or null."""
        odd = odd_values(candidate.row)
        if "audio" in odd:
            return Finding(None) if odd["audio"] is None else None
        if candidate.sound.missing:
            return Finding(candidate.row.audio_path)
        if candidate.reference is not None and candidate.reference.missing:
            return Finding(f"ref_audio: {candidate.row.ref_audio_path}")
        return None


@dataclass(frozen=True, slots=True)
class UnreadableAudio:
    """soundfile cannot open it, or it holds no samples; reference audio likewise."""

    name: ClassVar[str] = "unreadable_audio"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the path and the reason."""
        if candidate.sound.duration_s is None and not candidate.sound.missing:
            return Finding(f"{candidate.row.audio_path}: {candidate.sound.reason}")
        reference = candidate.reference
        if reference is not None and reference.duration_s is None and not reference.missing:
            return Finding(f"ref_audio: {candidate.row.ref_audio_path}: {reference.reason}")
        return None


@dataclass(frozen=True, slots=True)
class TruncatedAudio:
    """The file holds less audio than its header says, or decoding breaks off; reference audio likewise.

    A WAV file that was cut short is seen without decoding.
    """

    min_decoded_share: float
    name: ClassVar[str] = "truncated_audio"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the share of the stated length that there is."""
        for sound in (candidate.sound, candidate.reference):
            if sound is not None and sound.duration_s:
                held_s = sound.duration_s if sound.samples is None else sound.samples.decoded_s
                share = held_s / (sound.stated_s or sound.duration_s)
                if share < self.min_decoded_share:
                    return Finding(share, self.min_decoded_share)
        return None


@dataclass(frozen=True, slots=True)
class TooShort:
    """Less audio than `min_seconds`, once the tail silence is cut (see kept_s)."""

    min_seconds: float
    keep_tail_s: float | None
    name: ClassVar[str] = "too_short"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: seconds."""
        seconds = kept_s(candidate.sound, self.keep_tail_s)
        return Finding(seconds, self.min_seconds) if seconds is not None and seconds < self.min_seconds else None


@dataclass(frozen=True, slots=True)
class TooLong:
    """More audio than `max_seconds`, once the tail silence is cut (see kept_s)."""

    max_seconds: float
    keep_tail_s: float | None
    name: ClassVar[str] = "too_long"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: seconds."""
        seconds = kept_s(candidate.sound, self.keep_tail_s)
        return Finding(seconds, self.max_seconds) if seconds is not None and seconds > self.max_seconds else None


@dataclass(frozen=True, slots=True)
class CharsPerSecond:
    """More text than can be said in that time, or so little that some of what is said must be missing.

    `bounds` are (lowest, highest) spoken characters a second by script. Of `grace_s`, so many seconds may be without
    speech, and in so many more may the text have been said: a short word in a second of room tone passes.
    """

    bounds: Mapping[str, tuple[float, float]]
    grace_s: tuple[float, float]
    keep_tail_s: float | None
    name: ClassVar[str] = "chars_per_second"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: spoken characters a second; threshold: the bound that it is beyond."""
        seconds = kept_s(candidate.sound, self.keep_tail_s)
        script, characters = spoken(candidate.row.text)
        bounds = self.bounds.get(script)
        if bounds is None or not seconds:
            return None
        (low, high), (silent_s, more_s) = bounds, self.grace_s
        if characters > high * (seconds + more_s):
            return Finding(characters / seconds, high)
        return Finding(characters / seconds, low) if characters < low * (seconds - silent_s) else None


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing is heard: the level, without a constant offset, is under `silent_dbfs`."""

    silent_dbfs: float
    name: ClassVar[str] = "silent"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: dB relative to full scale."""
        samples = candidate.sound.samples
        if samples is None or samples.rms_dbfs >= self.silent_dbfs:
            return None
        return Finding(samples.rms_dbfs, self.silent_dbfs)


@dataclass(frozen=True, slots=True)
class Clipped:
    """Too many samples stand at full scale: the recording was too loud, and its peaks are cut off."""

    max_clipped_share: float
    name: ClassVar[str] = "clipped"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: shares of the samples."""
        samples = candidate.sound.samples
        if samples is None or samples.clipped_share <= self.max_clipped_share:
            return None
        return Finding(samples.clipped_share, self.max_clipped_share)


@dataclass(frozen=True, slots=True)
class DcOffset:
    """The samples swing around a constant that is far from zero."""

    max_dc_offset: float
    name: ClassVar[str] = "dc_offset"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: full scales."""
        samples = candidate.sound.samples
        if samples is None or abs(samples.dc) <= self.max_dc_offset:
            return None
        return Finding(samples.dc, self.max_dc_offset)


@dataclass(frozen=True, slots=True)
class LeadingSilence:
    """A long silence before anything is said."""

    max_seconds: float
    name: ClassVar[str] = "leading_silence"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: seconds."""
        samples = candidate.sound.samples
        if samples is None or samples.leading_silence_s <= self.max_seconds:
            return None
        return Finding(samples.leading_silence_s, self.max_seconds)


@dataclass(frozen=True, slots=True)
class TailSilence:
    """A long silence after the last sound: a model that learns it does not stop when it has said its text."""

    max_seconds: float
    name: ClassVar[str] = "tail_silence"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: seconds."""
        samples = candidate.sound.samples
        if samples is None or samples.tail_silence_s <= self.max_seconds:
            return None
        return Finding(samples.tail_silence_s, self.max_seconds)


@dataclass(frozen=True, slots=True)
class Upsampled:
    """No energy in the upper part of the band that the sample rate could hold: recorded at a lower rate, or coded."""

    min_bandwidth_share: float
    name: ClassVar[str] = "upsampled"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: Hz up to which there is energy; threshold: Hz up to which there should be."""
        samples, nyquist_hz = candidate.sound.samples, candidate.sound.sample_rate_hz / 2
        least_hz = self.min_bandwidth_share * nyquist_hz
        if samples is None or not samples.bandwidth_hz or samples.bandwidth_hz >= least_hz:
            return None
        return Finding(samples.bandwidth_hz, least_hz)


@dataclass(frozen=True, slots=True)
class OwnReference:
    """The reference audio is the row's own clip: all of the answer stands in the prompt, so that copying is learnt."""

    name: ClassVar[str] = "own_reference"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the path of the reference."""
        reference, path = candidate.reference, candidate.row.ref_audio_path
        if path is None or reference is None or reference.missing or candidate.sound.missing:
            return None
        own, other = candidate.sound.samples, reference.samples
        same = own is not None and other is not None and own.digest == other.digest
        return Finding(path) if same or normpath(path) == normpath(candidate.row.audio_path) else None
