"""The rule for what stands in scraped transcripts where nothing was said.

Nearly every text is none of it, and must be found so in about two microseconds. So a text meets first those patterns
alone that can begin with its first letter, as one alternation that needs to fit only the text's beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from re import _constants as codes  # type: ignore[attr-defined]  # private, as the parser is; see first_letters
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, ClassVar

from voxtrain.manifest.row import SHOWN_LETTERS
from voxtrain.manifest.rules import Candidate, Finding

SENTENCE_END = re.compile("(?<=[.!?\u2026])\\s|[\u3002\uff01\uff1f]")  # escaped: an ellipsis; CJK full stops
BRACKETS = frozenset("[](){}<>*#\u00a9\uff08\uff09\u3010\u3011")  # they say what stands between them; the last: CJK
ASCII = frozenset(map(chr, range(128)))
ALIKE = {"\u0131": "i", "\u0130": "i", "\u017f": "s", "\u212a": "k"}  # not ASCII, and equal to it without case


@dataclass(frozen=True, slots=True)
class Boilerplate:
    """What stands in scraped transcripts where nothing was said; the finding names the pattern.

    A pattern must match the whole text, or each sentence must be matched by one: recognisers repeat such lines. Runs of
    white space count as one blank, and a text is tried with and without the marks around it.
    """

    patterns: tuple[re.Pattern[str], ...]
    beginnings: Beginnings = field(init=False, repr=False, compare=False)
    name: ClassVar[str] = "boilerplate"

    def __post_init__(self) -> None:
        object.__setattr__(self, "beginnings", _beginnings(self.patterns))

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the text; threshold: the pattern that matches it, or its first sentence."""
        text = " ".join(candidate.row.text.replace("\u2019", "'").split())
        if not self.beginnings.may_match(text):
            return None
        pattern = self._of(text)
        if pattern is None:
            sentences = [part for part in SENTENCE_END.split(text) if part]
            if sentences[1:] and all(map(self._of, sentences)):
                pattern = self._of(sentences[0])
        return None if pattern is None else Finding(candidate.row.text[:SHOWN_LETTERS], pattern)

    def _of(self, text: str) -> str | None:
        tries = {text, _without_marks(text)}
        for pattern in self.patterns:
            if any(map(pattern.fullmatch, tries)):
                return pattern.pattern
        return None


class Beginnings:
    """Tells quickly of most texts that none of the patterns matches them, or their first sentence."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        # What looks at an end or around itself may match a sentence and not the longer text that begins with it.
        self._looks_ahead = any(re.search(r"\$|\\[bBZ]|\(\?[=!<]|\(\?P", pattern.pattern) for pattern in patterns)
        self._letters = [(pattern.pattern, first_letters(pattern)) for pattern in patterns]
        self._by_letter: dict[str, re.Pattern[str]] = {}  # made as letters come; "" stands for those beyond ASCII

    def may_match(self, text: str) -> bool:
        """False: no pattern matches the text or its first sentence, be it with or without the marks around them."""
        if self._looks_ahead or self._fits(text):
            return True
        starts_bare = not text or text[0].isalnum() or text[0] in BRACKETS
        return not starts_bare and self._fits(_without_marks(text))

    def _fits(self, text: str) -> bool:
        letter = text[:1] if text[:1] in ASCII else ""
        beginnings = self._by_letter.get(letter)
        if beginnings is None:
            fit = (text for text, first in self._letters if not letter or first is None or letter in first)
            beginnings = self._by_letter[letter] = _alternation(fit)
        return beginnings.match(text) is not None


@lru_cache(maxsize=4)
def _beginnings(patterns: tuple[re.Pattern[str], ...]) -> Beginnings:
    """Made once: the settings build their rules several times."""
    return Beginnings(patterns)


def _alternation(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or "(?!)", re.IGNORECASE)


def first_letters(pattern: re.Pattern[str]) -> frozenset[str] | None:
    """The ASCII letters, of either case, that a match can begin with; None where it may be any, or nothing.

    The parser of `re` is private. What it gives beyond the usual counts as any letter, which costs time alone.
    """
    letters, may_be_empty = _first(list(parser.parse(pattern.pattern, pattern.flags)))
    if letters is None or may_be_empty:
        return None
    return frozenset(case for letter in letters for case in (letter.lower(), letter.upper())) & ASCII


def _first(parts: list[tuple[Any, Any]]) -> tuple[set[str] | None, bool]:
    """What a sequence can begin with (None: anything), and whether it can be empty."""
    letters: set[str] = set()
    for kind, what in parts:
        more, may_be_empty = _first_of(kind, what)
        if more is None:
            return None, False
        letters |= more
        if not may_be_empty:
            return letters, False
    return letters, True


def _first_of(kind: Any, what: Any) -> tuple[set[str] | None, bool]:
    if kind is codes.LITERAL:
        kind, what = codes.IN, [(kind, what)]
    if kind is codes.IN and all(each is codes.LITERAL for each, _ in what):  # else a range, a class, or a negation
        return {ALIKE.get(chr(code), chr(code)) for _, code in what}, False
    if kind is codes.SUBPATTERN:
        return _first(list(what[-1]))
    if kind in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        letters, may_be_empty = _first(list(what[2]))
        return letters, may_be_empty or what[0] == 0
    if kind is codes.BRANCH:
        branches = [_first(list(branch)) for branch in what[1]]
        if all(letters is not None for letters, _ in branches):
            return set().union(*(letters or () for letters, _ in branches)), any(empty for _, empty in branches)
    return None, False


def _without_marks(text: str) -> str:
    """Without what is neither letter, digit nor bracket at both ends."""
    start, end = 0, len(text)
    while start < end and not (text[start].isalnum() or text[start] in BRACKETS):
        start += 1
    while start < end and not (text[end - 1].isalnum() or text[end - 1] in BRACKETS):
        end -= 1
    return text[start:end]
