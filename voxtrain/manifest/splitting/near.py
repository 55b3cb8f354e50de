"""Texts that stand in two splits, the same or nearly: a model that has read a held-out text does better on it.

Texts are compared as letters and digits alone. Held-out texts are indexed by short pieces; a text of training is
compared, by rapidfuzz, with those that share most pieces with it. So a million rows take seconds, not 10^10
comparisons; what equals a held-out text is always found, what is near nearly always (the tests say how often).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from voxtrain.manifest.splitting.crossing import EXAMPLES, HELD_OUT, PAIRS, TRAIN, Met, pair_name
from voxtrain.manifest.splitting.letters import Alphabet, Integers, Letters
from voxtrain.manifest.splitting.near_index import NOWHERE, Entry, TextIndex, Texts, batches
from voxtrain.run_folder import SPLITS

BATCH = 4096  # texts at a time
SHOWN_LETTERS = 200


@dataclass(frozen=True, slots=True)
class Found:
    """Near-duplicates. texts: [F] places of texts that were looked up. held_out: [F] places of the held-out ones.

    scores: [F]. unclear: [U], places of texts that have too much in common with too many to be compared with all.
    """

    texts: Integers
    held_out: Integers
    scores: npt.NDArray[np.float64]
    unclear: Integers


class NearText:
    """Near-duplicate texts across splits. All held-out rows are added before the first row of training."""

    def __init__(self, score: float) -> None:
        """score: of 100, rapidfuzz's ratio of two texts from which on they are near-duplicates."""
        self._score = score
        self._alphabet = Alphabet()
        self._texts: dict[str, Texts] = {split: {} for split in SPLITS}  # of training, those not looked up yet
        self._index: TextIndex | None = None
        self._unclear_rows = 0
        self._pairs = {pair_name(*pair): _Pair(*pair) for pair in PAIRS}

    def add(self, split: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Rows: text, id and line."""
        texts = self._texts[split]
        for record in records:
            text = record["text"]
            met = texts.get(text)
            if met is not None:
                met.meet(record["id"], record["line"])
                continue
            texts[text] = Met(1, record["id"], record["line"])
            if split == TRAIN and len(texts) >= BATCH:
                self._look_up_training()

    def to_record(self) -> dict[str, Any]:
        """For each pair of splits: `shared` texts of the second, the rows of each concerned, the worst examples.

        unclear_rows: of training, for which no near-duplicate was found, but not all that may be one was looked at.
        """
        self._look_up_training()
        return {"score": self._score, "unclear_rows": self._unclear_rows} | {
            name: pair.to_record() for name, pair in self._pairs.items()
        }

    def _look_up_training(self) -> None:
        texts = self._texts[TRAIN]
        if self._index is None:
            held_out = {split: self._texts[split] for split in HELD_OUT}
            self._index = TextIndex(held_out, self._alphabet, self._score)
            one, other = HELD_OUT
            for batch in batches(held_out[one], BATCH) if held_out[other] else ():
                self._look_up(self._index, batch, [self._pairs[pair_name(one, other)]])
        batch = list(texts.items())
        found = self._look_up(self._index, batch, [self._pairs[pair_name(TRAIN, split)] for split in HELD_OUT])
        missed = np.setdiff1d(found.unclear, found.texts)
        self._unclear_rows += sum(batch[place][1].rows for place in missed.tolist())
        texts.clear()

    def _look_up(self, index: TextIndex, texts: Sequence[tuple[str, Met]], pairs: Sequence[_Pair]) -> Found:
        found = near_duplicates(index, self._alphabet.letters([text for text, _ in texts]), self._score)
        for pair in pairs:
            pair.add(texts, index, found)
        return found


def near_duplicates(index: TextIndex, letters: Letters, score: float) -> Found:
    """Each text with each held-out text that equals it or scores as much."""
    equal = np.where(letters.lengths > 0, index.equal(letters.whole()), NOWHERE)
    same = np.flatnonzero(equal != NOWHERE)
    rows, entries, unclear = index.candidates(letters)
    others = equal[rows] != entries
    rows, entries = rows[others], entries[others]
    unique, inverse = np.unique(rows, return_inverse=True)
    texts = letters.texts(unique)
    scores = process.cpdist(
        [texts[place] for place in inverse.tolist()],
        [index.entries[entry].letters for entry in entries.tolist()],
        scorer=fuzz.ratio,
        score_cutoff=score,
        dtype=np.float32,
    )
    near = scores >= max(score, 1e-6)  # what lies under the cutoff comes out as 0
    every = np.concatenate([np.full(len(same), 100.0), scores[near]])
    return Found(np.append(same, rows[near]), np.append(equal[same], entries[near]), every, unclear)


class _Pair:
    """What the rows of one split have of the texts of another."""

    def __init__(self, one: str, other: str) -> None:
        self._one, self._other = one, other
        self._rows = 0
        self._met: dict[int, tuple[float, str, Met, Entry]] = {}  # by held-out text: the best score, and of what

    def add(self, texts: Sequence[tuple[str, Met]], index: TextIndex, found: Found) -> None:
        """Texts of the first split, and the near-duplicates of each in any."""
        own = index.has[self._other][found.held_out]
        rows, entries, scores = found.texts[own], found.held_out[own], found.scores[own]
        self._rows += sum(texts[row][1].rows for row in np.unique(rows).tolist())
        highest = np.zeros(len(index.entries))
        np.maximum.at(highest, entries, scores)
        best = np.flatnonzero(scores == highest[entries])
        for row, place, score in zip(rows[best].tolist(), entries[best].tolist(), scores[best].tolist(), strict=True):
            (text, met), entry = texts[row], index.entries[place]
            other = self._met.get(place)
            if other is None or (-score, met.id, met.line) < (-other[0], other[2].id, other[2].line):
                self._met[place] = score, text, met, entry

    def to_record(self) -> dict[str, Any]:
        """What split.json says of the pair."""
        worst = heapq.nsmallest(
            EXAMPLES, self._met.values(), key=lambda met: (-met[0], -len(met[3].letters), met[2].id, met[2].line)
        )
        return {
            "shared": len(self._met),
            "rows": {self._one: self._rows, self._other: sum(met[3].rows[self._other] for met in self._met.values())},
            "examples": [
                {
                    "score": round(score, 1),
                    self._one: _told(text, met),
                    self._other: _told(*entry.first[self._other]),
                }
                for score, text, met, entry in worst
            ],
        }


def _told(text: str, met: Met) -> dict[str, Any]:
    return met.to_record() | {"text": text[:SHOWN_LETTERS]}
