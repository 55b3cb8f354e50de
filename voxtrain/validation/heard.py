"""What listening says against a checkpoint: guards over the samples in listening.csv and over blind votes.

Imports no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from voxtrain.durable import read_log_rows
from voxtrain.run_folder import RunFolder
from voxtrain.statistics.clusters import cluster_sums, estimate
from voxtrain.validation.evidence import LEVEL
from voxtrain.validation.settings import Guards
from voxtrain.validation.votes import Comparison, comparisons

Sample = dict[str, str]

TRUNCATED = 0.5
"""Said in under this part of the seconds a character that all samples of the text take in the middle."""
SILENT = "it is silent"
"""How the reason of a sample that failed for being silent begins (listening/measure.py)."""
FEWEST_TEXTS = 3
"""With fewer texts a score's spread over texts is not known."""


class Hearing:
    """All samples of a run, of all its checkpoints."""

    def __init__(self, run: RunFolder) -> None:
        self._samples: dict[int, list[Sample]] = defaultdict(list)
        pace: dict[str, list[float]] = defaultdict(list)
        for sample in read_log_rows(run.listening_table):
            self._samples[int(sample["step"])].append(sample)
            pace[sample.get("text", "")].append(_number(sample.get("seconds_per_char")))
        self.comparisons, self.lapsed = comparisons(run)
        found = {text: [each for each in every if math.isfinite(each)] for text, every in pace.items()}
        self._pace = {text: median(every) for text, every in found.items() if every}

    def objections(self, step: int, guards: Guards) -> list[str]:
        """Why the checkpoint must not be shipped, each in words; empty too where nothing was heard of it."""
        if step not in self._samples:
            return []
        told = [self._share(step, name, limit) for name, limit in self._limits(guards)]
        told += [self._score(step, 0, score, LEVEL) for score in scores(guards)]
        return [words for words in told if words]

    def outscored(self, step: int, rivals: Sequence[int], guards: Guards) -> list[str]:
        """What is surely worse than at another of `rivals`, in words: one for each score, allowing for all rivals."""
        others = [other for other in rivals if other != step]
        level = 1 - (1 - LEVEL) / max(len(others), 1)
        told = [[words for other in others if (words := self._score(step, other, s, level))] for s in scores(guards)]
        return [words[0] for words in told if words]

    def outvoted(self, step: int, rivals: Sequence[int], limit: float | None) -> list[str]:
        """Which of `rivals` blind votes surely prefer to the checkpoint, in more than the share `limit` of them."""
        if limit is None:
            return []
        told = []
        for found in self.comparisons:
            other = next((each for each in found.steps if each != step), step)
            if step in found.steps and other in rivals and found.share(other)[1] > limit:
                told.append(f"blind votes prefer step {other}: {votes_in_words(found, other)}")
        return told

    def worse_than_base(self, step: int) -> list[str]:
        """What is worse at that step than at the base model, however little."""
        told = []
        for name, (words, _) in self._faults().items():
            mine, base = self._count(step, name), self._count(0, name)
            if mine > base:
                of = f"{len(self._samples[step])} listening samples of step {step}"
                told.append(f"{mine} of {of} {words} (base model: {base})")
        return told

    @staticmethod
    def _limits(guards: Guards) -> list[tuple[str, float | None]]:
        return [(name, getattr(guards, name)) for name in ("failed", "silent", "truncated", "runaway")]

    def _faults(self) -> dict[str, tuple[str, Callable[[Sample], bool]]]:
        """In words, and how a sample is told that has it."""
        return {
            "failed": ("gave no sound", lambda s: bool(s.get("failed")) and not s["failed"].startswith(SILENT)),
            "silent": ("are silent", lambda s: s.get("failed", "").startswith(SILENT)),
            "truncated": ("break off early", self._is_truncated),
            "runaway": ("did not stop by themselves", lambda s: s.get("runaway") == "True"),
        }

    def _is_truncated(self, sample: Sample) -> bool:
        pace = self._pace.get(sample.get("text", ""), math.nan)
        return _number(sample.get("seconds_per_char")) < TRUNCATED * pace  # False where one is not known

    def _count(self, step: int, name: str) -> int:
        has = self._faults()[name][1]
        return sum(map(has, self._samples.get(step, [])))

    def _share(self, step: int, name: str, limit: float | None) -> str:
        if limit is None:
            return ""
        mine, base = (self._count(at, name) / max(len(self._samples.get(at, [])), 1) for at in (step, 0))
        if mine - base <= limit:
            return ""
        words = self._faults()[name][0]
        return f"{mine:.0%} of its listening samples {words} (base model: {base:.0%}; allowed: {limit:.0%} more)"

    def _score(self, step: int, other: int, score: Score, level: float) -> str:
        """That a score differs from another checkpoint's by more than its margin for the worse, and surely so."""
        if score.margin is None:
            return ""
        mine, theirs = (
            {_said(s): _number(s.get(score.name)) for s in self._samples.get(at, [])} for at in (step, other)
        )
        both = [said for said in mine if math.isfinite(mine[said]) and math.isfinite(theirs.get(said, math.nan))]
        texts = [said[0] for said in both]
        if len(set(texts)) < FEWEST_TEXTS:
            return ""
        low, mean = _surely(np.array([score.worse * (mine[said] - theirs[said]) for said in both]), texts, level)
        if low <= score.margin:
            return ""
        direction, whose = "above" if score.worse > 0 else "below", f"step {other}'s" if other else "the base model's"
        return f"its {score.name.replace('_', ' ')} lies {mean:.3f} {direction} {whose}, by {low:.3f} at least"


@dataclass(frozen=True)
class Score:
    """What was measured of samples by a model that listens."""

    name: str  # a column
    margin: float | None  # by which it may be worse; None: by any
    worse: int  # +1 where more is worse, else -1


def scores(guards: Guards) -> tuple[Score, ...]:
    """The scores that guards look at."""
    return (
        Score("word_error_rate", guards.word_error_rate, +1),
        Score("speaker_similarity", guards.speaker_similarity, -1),
    )


def votes_in_words(found: Comparison, step: int) -> str:
    """`14 of 16 are for it (88 %, 95 % interval 62 to 98 %); 2 heard no difference`."""
    mine, decided, (share, low, high) = (
        found.preferred[found.steps.index(step)],
        sum(found.preferred),
        found.share(step),
    )
    interval = f"{share:.0%}, {LEVEL:.0%} interval {100 * low:.0f} to {high:.0%}".replace("%", " %")
    undecided = f"; {found.undecided} heard no difference" if found.undecided else ""
    return f"{mine} of {decided} are for it ({interval}){undecided}"


def _surely(differences: np.ndarray, texts: Sequence[str], level: float) -> tuple[float, float]:
    """The lower end of the interval over texts, and the mean."""
    found = estimate(*cluster_sums(differences[None], texts))
    return float(found.means[0] - found.reach(level) * found.error(0)), float(found.means[0])


def _said(sample: Sample) -> tuple[str, str, str]:
    return sample.get("text", ""), sample.get("voice", ""), sample.get("seed", "")


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return math.nan
