"""How loud the samples of a clip are: its level, its silent ends, and up to which frequency there is any sound.

Samples come in blocks, so that a recording of hours takes no more memory than one of seconds. Each is looked at few
times and in float32: measuring must cost little beside decoding.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

HOPS_PER_S = 100  # levels are of 10 ms
FULL_SCALE = 0.999  # of 1.0; 16-bit audio ends at 0.99997
QUIETEST_POWER = 1e-20  # -200 dB stands for digital silence, which has no level
MOST = 1e14  # beyond it squares overflow float32: no sound, whatever the file says

# Silence is what is far under the loudest 10 ms of the clip, and near the quietest. In the clips that this was tried
# on (12 corpora, and eSpeak) speech stays within 30 dB of its loudest; room tone is lower, by 40 dB where it is clean.
SURELY_HEARD, SURELY_SILENT = 1e-3, 1e-4  # -30 and -40 dB
ABOVE_QUIETEST = 6.3  # 8 dB: how far room tone swings
INAUDIBLE = 1e-6  # -60 dB relative to full scale: a clip without a louder 10 ms is silence throughout

WINDOW = 512  # samples of one spectrum: 21 to 32 ms at 24 to 16 kHz
SPECTRA = 16  # of each block: half as many miss the hissed sounds of speech, which reach highest, in 1 clip of 50
FEWEST_SPECTRA = 8  # less tells nothing
# What is weaker, relative to the strongest frequency, is left by rounding and by the filters of resamplers. By this
# bound speech filled 0.93 or more of its band, and 0.58 or 0.86 (median) once it was at half or 3/4 of its rate.
IN_BAND = 1e-3  # of the amplitude: -60 dB
LOWEST_BIN = 2  # a constant offset fills those under it
_HANN = np.hanning(WINDOW).astype(np.float32)


class Levels:
    """What is measured of a clip, block by block, by few calls: after decoding each finds its code out of cache."""

    def __init__(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        self._sum = 0.0
        self._squares = 0.0
        self._hops: list[_Hops] = []
        self._spectrum: Floats | None = None
        self._spectra = 0
        self.frames = 0
        self.peak = 0.0
        self.clipped = 0

    def add(self, wave: Floats) -> bool:
        """Measure the next block, [frames] of one channel, all but the last whole hops long.

        False: it holds what is no sound (not a number, or infinite), and nothing is measured.
        """
        peak = max(float(wave.max()), -float(wave.min()))
        if not peak < MOST:  # as not a number compares
            return False
        self.frames += len(wave)
        self.peak = max(self.peak, peak)
        if peak >= FULL_SCALE:
            self.clipped += int(np.count_nonzero(np.abs(wave) >= FULL_SCALE))
        hop = hop_of(self._rate_hz) if self._hops else min(hop_of(self._rate_hz), len(wave))
        if len(wave) >= hop:
            hops = _Hops(wave, hop)
            self._hops.append(hops)
            self._sum += hops.sum
            self._squares += hops.squares
            self._listen(wave, hops)
        return True

    def dc(self) -> float:
        """The mean of all samples (but for less than a hop at the end)."""
        return self._sum / self._measured()

    def rms_dbfs(self) -> float:
        """The level without the mean, at least -200."""
        power = self._squares / self._measured() - self.dc() ** 2
        return 10 * math.log10(max(power, QUIETEST_POWER))

    def silences_s(self) -> tuple[float, float]:
        """Silence before the first sound and after the last, in seconds; of a silent clip both are all of it."""
        hop = self._hops[0].hop
        audible = self._hops[0].audible
        if len(self._hops) > 1:
            audible = _audible(np.concatenate([hops.powers for hops in self._hops]), hop)
        first, end = _heard(audible, hop, self.frames)
        return first / self._rate_hz, (self.frames - end) / self._rate_hz

    def bandwidth_hz(self) -> float:
        """The highest frequency with energy; 0 where the clip is too short or too quiet to tell."""
        if self._spectrum is None or self._spectra < FEWEST_SPECTRA:
            return 0.0
        strongest = float(self._spectrum.max())
        found = (self._spectrum > strongest * IN_BAND).nonzero()[0]
        return (int(found[-1]) + LOWEST_BIN) * self._rate_hz / WINDOW

    def _measured(self) -> int:
        return sum(len(hops.powers) for hops in self._hops) * self._hops[0].hop

    def _listen(self, wave: Floats, hops: _Hops) -> None:
        """Add the spectra of some of the audible hops: of each frequency the strongest counts."""
        if not len(hops.audible) or len(wave) < WINDOW:
            return
        windows = wave[: len(wave) // WINDOW * WINDOW].reshape(-1, WINDOW)
        some = hops.audible[:: math.ceil(len(hops.audible) / SPECTRA)] * hops.hop // WINDOW
        cut = windows.take(some, axis=0, mode="clip") * _HANN
        self._spectra += len(cut)
        strongest = np.abs(np.fft.rfft(cut)[:, LOWEST_BIN:]).max(axis=0)
        self._spectrum = strongest if self._spectrum is None else np.maximum(self._spectrum, strongest)


def trimmed_length(wave: Floats, rate_hz: int, keep_s: float) -> int:
    """How many of the samples [frames] stay where `keep_s` seconds of the silence at the end are kept.

    It agrees with the tail silence that is measured block by block. Of a silent clip only that much stays.
    """
    if not len(wave):
        return 0
    hops = _Hops(wave, min(hop_of(rate_hz), len(wave)))
    end = _heard(hops.audible, hops.hop, len(wave))[1]
    return min(len(wave), end + round(keep_s * rate_hz))


def hop_of(rate_hz: int) -> int:
    """Samples in one hop."""
    return max(1, rate_hz // HOPS_PER_S)


class _Hops:
    """Samples [frames] in hops; what is left at the end, less than one, counts to the last of them."""

    def __init__(self, wave: Floats, hop: int) -> None:
        whole = len(wave) // hop
        frames = wave[: whole * hop].reshape(whole, hop)
        sums = frames @ _ones(hop)
        squares = np.vecdot(frames, frames)
        self.hop = hop
        self.sum = float(sums.sum())
        self.squares = float(squares.sum())
        self.powers: Floats = squares * np.float32(hop) - sums * sums  # times hop^2, about the mean of each hop
        self.audible = _audible(self.powers, hop)


@lru_cache(maxsize=16)
def _ones(count: int) -> Floats:
    return np.ones(count, np.float32)


def _audible(powers: Floats, hop: int) -> NDArray[np.intp]:
    """Which hops are audible, in their order."""
    loudest, quietest = float(powers.max()), float(powers.min())
    threshold = min(max(quietest * ABOVE_QUIETEST, loudest * SURELY_SILENT), loudest * SURELY_HEARD)
    return (powers > (threshold if loudest >= INAUDIBLE * hop * hop else math.inf)).nonzero()[0]


def _heard(audible: NDArray[np.intp], hop: int, frames: int) -> tuple[int, int]:
    """The first sample of the first audible hop, and the one behind the last."""
    if not len(audible):
        return frames, 0
    end = (int(audible[-1]) + 1) * hop
    return int(audible[0]) * hop, frames if end > frames - hop else end
