"""Held-out texts by their pieces: which of them a text may nearly equal, found without comparing it with each.

A text of n letters that is cut into more pieces than it has changes keeps a piece as it was. At a score of 90 up to
n / 10 letters may be others, and there are about n / 8 pieces. Of letters left out or added there may be n / 5; that
a piece stays whole is then likely, not certain. Pieces that many texts have tell little, so the rarest are kept; where
even these are common, as in texts made from a pattern, the neighbours in the order of the alphabet are looked at too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from voxtrain.manifest.splitting.crossing import Met
from voxtrain.manifest.splitting.letters import Alphabet, Hashes, Integers, Letters, spelled

Texts = dict[str, Met]
"""Texts as they stand in the rows, and the rows that have each."""

CHUNK = 4096  # texts at a time: bounds memory
LONGEST_PIECE, SHORTEST_PIECE = 12, 3
SHORT = 5  # a text of fewer pieces than this is cut into shorter ones
RAREST = 4  # pieces of each text that are kept, besides those that it has alone
POSTINGS = 32  # texts that are looked at for one piece: bounds the work where all texts are alike
LOOKED_AT = 96  # held-out texts that one text is counted against, by all its pieces
COMPARED = 8  # held-out texts that one text is compared with, for its pieces
NEIGHBOURS = 8  # that it is compared with on either side
FILTER_BITS = 24  # at most: 16 MiB
NOWHERE = -1


def piece_lengths(score: float) -> tuple[int, int]:
    """The letters of a piece of long and of short texts, such that there are more pieces than letters that differ."""
    changed = max(1 - score / 100, 0.01)
    long = int(np.clip(0.8 / changed, SHORTEST_PIECE + 1, LONGEST_PIECE))
    return long, max(SHORTEST_PIECE, long * 5 // 8)


@dataclass(frozen=True, slots=True)
class Entry:
    """A held-out text: its letters, and for each split that has it how many rows, and the text of the first of them."""

    letters: str
    rows: dict[str, int]
    first: dict[str, tuple[str, Met]]


class TextIndex:
    """The distinct texts of the held-out splits. Nothing in it depends on the order of the rows."""

    def __init__(self, texts: Mapping[str, Texts], alphabet: Alphabet, score: float) -> None:
        """texts: of each held-out split. score: of 100, from which on two texts are near-duplicates.

        `has` says of each split which entries stand in it.
        """
        self._changed = 1 - score / 100
        self._hashes, self.entries = _entries(texts, alphabet)
        self.has = {split: np.array([split in entry.rows for entry in self.entries], dtype=np.bool_) for split in texts}
        self._lengths = np.array([len(entry.letters) for entry in self.entries], dtype=np.int64)
        self._order = _Order([entry.letters for entry in self.entries])
        long, short = piece_lengths(score)
        is_long = self._lengths >= SHORT * long
        self._tables = [
            _Pieces(self, np.flatnonzero(is_long), long),
            _Pieces(self, np.flatnonzero(~is_long & (self._lengths >= short)), short),
        ]

    def equal(self, hashes: Hashes) -> Integers:
        """[N], for each hash of a whole text the place of the held-out text that equals it, else NOWHERE."""
        if not self.entries:
            return np.full(len(hashes), NOWHERE, dtype=np.int64)
        found: Integers = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found[self._hashes[found] != hashes] = NOWHERE
        return found

    def candidates(self, texts: Letters) -> tuple[Integers, Integers, Integers]:
        """Pairs that share a piece, or are neighbours where pieces tell too little, of lengths that the score allows.

        [C] places of texts, [C] places of held-out texts: of those that share pieces with a text, the COMPARED that
        share most. [U] places of unclear texts: pieces of theirs stand in too many held-out texts to look at all.
        """
        size = max(1, len(self.entries))
        hits = [table.hits(texts) for table in self._tables]
        pairs, shared = np.unique(np.concatenate([found for found, _ in hits]), return_counts=True)
        rows, entries = np.divmod(pairs, size)
        fits = self._fits(texts, rows, entries)
        rows, entries, shared = rows[fits], entries[fits], shared[fits]
        order = np.lexsort((entries, -shared, rows))
        rows, entries = rows[order], entries[order]
        most = rank_in_runs(rows) < COMPARED
        unclear = np.unique(np.concatenate([unclear for _, unclear in hits]))
        beside = self._order.beside(texts, unclear)
        beside = beside[self._fits(texts, *np.divmod(beside, size))]
        rows, entries = np.divmod(np.union1d(rows[most] * size + entries[most], beside), size)
        return rows, entries, unclear

    def _fits(self, texts: Letters, rows: Integers, entries: Integers) -> npt.NDArray[np.bool_]:
        own, other = texts.lengths[rows], self._lengths[entries]
        fits: npt.NDArray[np.bool_] = np.abs(own - other) <= self._changed * (own + other) + 1e-9
        return fits

    def bounds(self, entries: Integers) -> tuple[float, float]:
        """The lengths of texts that may nearly equal one of these."""
        lengths, spread = self._lengths[entries], (1 + self._changed) / max(1 - self._changed, 1e-9)
        return float(lengths.min()) / spread, float(lengths.max()) * spread


class _Pieces:
    """Pieces of one length, and the held-out texts that have them."""

    def __init__(self, index: TextIndex, entries: Integers, length: int) -> None:
        self._length, self._size = length, max(1, len(index.entries))
        found = [_cut(index, entries[start : start + CHUNK], length) for start in range(0, len(entries), CHUNK)]
        keys = np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in found)])
        owners = np.concatenate([np.empty(0, np.int64), *(owners for _, owners in found)])
        keys, owners = _telling(keys, owners)
        self._keys, self._starts = np.unique(keys, return_index=True)
        self._counts = np.diff(np.append(self._starts, len(keys)))
        self._owners = owners
        self._shortest, self._longest = index.bounds(entries) if len(entries) else (0.0, 0.0)
        bits = int(np.clip(np.ceil(np.log2(16 * len(keys) + 1)), 10, FILTER_BITS))
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, dtype=np.bool_)
        self._filter[self._keys >> self._shift] = True

    def hits(self, texts: Letters) -> tuple[Integers, Integers]:
        """Text x entries + entry, for each piece of each text and each held-out text that has it; unclear texts.

        Unclear is a text whose pieces stand in so many held-out texts that not all were looked at.
        """
        fits = np.flatnonzero((texts.lengths >= self._shortest) & (texts.lengths <= self._longest))
        texts = texts.only(fits)
        hashes = texts.pieces(self._length)
        places = np.flatnonzero(self._filter[hashes >> self._shift])
        if not len(places) or not len(self._keys):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        wanted = hashes[places]
        found = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        known = self._keys[found] == wanted
        places, found = places[known], found[known]
        rows = np.searchsorted(texts.ends, places, side="right")
        whole = places + self._length <= texts.ends[rows]
        rows, found, unclear = self._rarest(fits[rows[whole]], found[whole])
        counts = self._counts[found]
        inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners: Integers = self._owners[np.repeat(self._starts[found], counts) + inner]
        return owners + np.repeat(rows, counts) * self._size, unclear

    def _rarest(self, rows: Integers, found: Integers) -> tuple[Integers, Integers, Integers]:
        """The same matches, but the rarest alone of a text with too many; the texts that are unclear, with repeats."""
        counts = self._counts[found]
        many = np.bincount(rows, weights=counts, minlength=1)[rows] > LOOKED_AT
        unclear = rows[many | (counts == POSTINGS)]
        if not many.any():
            return rows, found, unclear
        some, counts, matches = rows[many], counts[many], found[many]
        order = np.lexsort((matches, counts, some))
        some, counts, matches = some[order], counts[order], matches[order]
        so_far = np.cumsum(counts)
        before = np.maximum.accumulate(np.where(rank_in_runs(some) == 0, so_far - counts, 0))
        few = so_far - before <= LOOKED_AT
        return np.append(rows[~many], some[few]), np.append(found[~many], matches[few]), unclear


class _Order:
    """Held-out texts in the order of the alphabet, read forwards and backwards."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = max(1, len(texts))
        self._ways = []
        for step in (1, -1):
            read = [text[::step] for text in texts]
            places = sorted(range(len(read)), key=read.__getitem__)
            self._ways.append((step, places, [read[place] for place in places]))

    def beside(self, texts: Letters, rows: Integers) -> Integers:
        """Text x entries + entry, for the NEIGHBOURS before and after each of some texts, both ways."""
        found = [
            row * self._size + place
            for row, text in zip(rows.tolist(), texts.texts(rows), strict=True)
            for step, places, read in self._ways
            for place in _around(places, bisect_left(read, text[::step]))
        ]
        return np.array(found, dtype=np.int64)


def _around(places: Sequence[int], middle: int) -> Sequence[int]:
    return places[max(0, middle - NEIGHBOURS) : middle + NEIGHBOURS]


def batches(texts: Texts, size: int) -> Iterator[list[tuple[str, Met]]]:
    """The texts with their rows, some at a time."""
    rest = iter(texts.items())
    while batch := list(islice(rest, size)):
        yield batch


def _entries(texts: Mapping[str, Texts], alphabet: Alphabet) -> tuple[Hashes, list[Entry]]:
    """The distinct texts in the order of their hashes; texts without a letter are none."""
    found: dict[int, Entry] = {}
    for split, own in texts.items():
        for batch in batches(own, CHUNK):
            letters = alphabet.letters([text for text, _ in batch])
            spelt = letters.texts(np.arange(len(batch)))
            for text_hash, word, (text, met) in zip(letters.whole().tolist(), spelt, batch, strict=True):
                if word:
                    entry = found.setdefault(text_hash, Entry(word, {}, {}))
                    entry.rows[split] = entry.rows.get(split, 0) + met.rows
                    first = entry.first.setdefault(split, (text, met))
                    if (met.id, met.line) < (first[1].id, first[1].line):
                        entry.first[split] = text, met
    order = sorted(found)
    return np.array(order, dtype=np.uint64), [found[text_hash] for text_hash in order]


def _cut(index: TextIndex, entries: Integers, length: int) -> tuple[Hashes, Integers]:
    """The pieces of some entries, one after another; the last ends where the text ends. Keys and their entries."""
    texts = spelled([index.entries[entry].letters for entry in entries.tolist()])
    counts = -(-texts.lengths // length)
    owners = np.repeat(np.arange(len(entries)), counts)
    inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    inside = np.minimum(inner * length, texts.lengths[owners] - length)
    starts = texts.ends - texts.lengths
    return texts.pieces(length)[starts[owners] + inside], entries[owners]


def _telling(keys: Hashes, owners: Integers) -> tuple[Hashes, Integers]:
    """The pieces that one text alone has and the rarest of each, by key; of each key the first POSTINGS texts."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    common = counts[inverse]
    order = np.lexsort((keys, common, owners))
    kept = order[(rank_in_runs(owners[order]) < RAREST) | (common[order] == 1)]
    keys, owners = keys[kept], owners[kept]
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    few = rank_in_runs(keys) < POSTINGS
    return keys[few], owners[few]


def rank_in_runs(values: npt.NDArray[np.generic]) -> Integers:
    """[N], the how manieth each value is of its run of equal ones, from 0."""
    places = np.arange(len(values))
    begins = np.ones(len(values), dtype=np.bool_)
    begins[1:] = values[1:] != values[:-1]
    return places - np.maximum.accumulate(np.where(begins, places, 0))
