"""How far what was heard is from what was to be said: word and character error rates."""

from __future__ import annotations

import re
import unicodedata

from voxtrain.manifest.scripts import script_of

UNSPACED = ("cjk", "thai", "lao", "khmer", "myanmar", "tibetan")  # scripts without blanks between words
NO_WORD = re.compile(r"[^\w\s]|_")


def word_error_rate(said: str, heard: str) -> float:
    """Words to insert, delete or replace for the one to become the other, by the number of words that were said.

    Case, marks and widths do not count. Of scripts without blanks between words: characters.
    """
    unspaced = script_of(said) in UNSPACED
    return _distance(_words(said, unspaced), _words(heard, unspaced))


def character_error_rate(said: str, heard: str) -> float:
    """The same of characters, blanks left out: `cannot` for `can not` is no error."""
    return _distance(_words(said, unspaced=True), _words(heard, unspaced=True))


def _distance(said: list[str], heard: list[str]) -> float:
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(said, heard) / max(1, len(said))


def _words(text: str, unspaced: bool) -> list[str]:
    """Words without case, marks and widths; where they are not spaced, their characters."""
    words = NO_WORD.sub("", unicodedata.normalize("NFKC", text).casefold()).split()
    return list("".join(words)) if unspaced else words
