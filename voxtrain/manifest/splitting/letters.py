"""Texts as arrays of letters and digits, many at a time, so that a million are compared in seconds.

Case, width (full or half), punctuation and spaces do not count; marks do, since scripts such as Thai and Hindi write
vowels with them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LONGEST = 1000  # letters of a text that are compared: more tell nothing new, and one line may have millions
UNKNOWN, NOTHING = -1, 0  # in the table: not looked at yet; a character that does not count
CODES = 0x110000
STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, with no pattern in its bits (2^64 over the golden ratio)
SHIFT = np.uint64(29)

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Letters:
    """Texts one after another. codes: [L] code points. ends: [N], where each text ends in `codes`. lengths: [N]."""

    codes: npt.NDArray[np.int32]
    ends: Integers
    lengths: Integers

    def texts(self, rows: Integers) -> list[str]:
        """The letters of some rows, as text."""
        ends, lengths = self.ends[rows].tolist(), self.lengths[rows].tolist()
        return [
            self.codes[end - length : end].tobytes().decode("utf-32-le", "surrogatepass")
            for end, length in zip(ends, lengths, strict=True)
        ]

    def only(self, rows: Integers) -> Letters:
        """Those of some texts, which are named in their order."""
        some = np.zeros(len(self.lengths), dtype=np.bool_)
        some[rows] = True
        return Letters(self.codes[np.repeat(some, self.lengths)], np.cumsum(self.lengths[some]), self.lengths[some])

    def whole(self) -> Hashes:
        """[N], a hash of each text; equal texts have equal ones."""
        starts = self.ends - self.lengths
        place = np.arange(len(self.codes), dtype=np.uint64) - np.repeat(starts.astype(np.uint64), self.lengths)
        mixed = mix((self.codes.astype(np.uint64) << np.uint64(32)) | place)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])  # modulo 2^64
        return mix(sums[self.ends] - sums[starts] + self.lengths.astype(np.uint64))

    def pieces(self, length: int) -> Hashes:
        """[L - length + 1], a hash of the `length` letters from each place on, those that reach into the next text too.

        Raises nothing for fewer letters than one piece: there are none.
        """
        count = max(0, len(self.codes) - length + 1)
        codes = self.codes.astype(np.uint64)
        hashes = np.zeros(count, dtype=np.uint64)
        for place in range(length):
            hashes = hashes * STEP + codes[place : place + count]
        return mix(hashes)


def mix(values: Hashes) -> Hashes:
    """Values spread over all 64 bits, one to one."""
    spread = values * STEP
    spread ^= spread >> SHIFT
    spread *= STEP
    return spread ^ (spread >> SHIFT)


def spelled(texts: Sequence[str]) -> Letters:
    """Texts that are letters alone already."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.int32)
    return Letters(codes, np.cumsum(lengths), lengths)


class Alphabet:
    """What every character counts as; filled as characters are met."""

    def __init__(self) -> None:
        self._table = np.full(CODES, UNKNOWN, dtype=np.int32)

    def letters(self, texts: Sequence[str]) -> Letters:
        """The letters and digits of texts, each cut at LONGEST characters."""
        cut = [text[:LONGEST] for text in texts]
        codes = np.frombuffer("".join(cut).encode("utf-32-le", "surrogatepass"), dtype=np.int32)
        found = self._table[codes]
        unknown = found == UNKNOWN
        if unknown.any():
            for code in np.unique(codes[unknown]).tolist():
                self._table[code] = counts_as(chr(code))
            found = self._table[codes]
        counted = found != NOTHING
        so_far = np.concatenate([np.zeros(1, np.int64), np.cumsum(counted)])
        bounds = np.cumsum([0, *map(len, cut)])
        ends = so_far[bounds[1:]]
        return Letters(found[counted], ends, ends - so_far[bounds[:-1]])


def counts_as(character: str) -> int:
    """The code point that a character is compared as; NOTHING for what is no letter, mark or digit."""
    folded = unicodedata.normalize("NFKC", character).casefold()
    if len(folded) != 1:
        folded = character
    return ord(folded) if unicodedata.category(folded)[0] in "LMN" else NOTHING
