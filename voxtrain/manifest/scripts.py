"""Which script a text is written in, and how many of its characters are spoken."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

SCRIPTS = (
    *("latin", "greek", "cyrillic", "armenian", "georgian", "hebrew", "arabic", "ethiopic", "devanagari", "bengali"),
    *("gurmukhi", "gujarati", "oriya", "tamil", "telugu", "kannada", "malayalam", "sinhala", "thai", "lao", "tibetan"),
    *("myanmar", "khmer", "mongolian", "hangul", "cjk", "other"),
)
"""`cjk` is Chinese characters and the syllables of Japanese, which stand mixed in one sentence."""

FIRST_WORDS = {script.upper(): script for script in SCRIPTS} | dict.fromkeys(
    ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "IDEOGRAPHIC", "BOPOMOFO"), "cjk"
)
"""How Unicode begins the names of letters, and the script that they are of."""
WIDTHS = ("HALFWIDTH", "FULLWIDTH")  # stand before the name of the script

# A digit is spoken as a word: one syllable where that is one character, else about four letters.
DIGIT_CHARACTERS, SYLLABIC_DIGIT_CHARACTERS = 4, 1
SYLLABIC = ("cjk", "hangul", "ethiopic")

_ASCII_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NO_LETTER = bytes(set(range(256)) - set(_ASCII_LETTERS))
_NO_DIGIT = bytes(set(range(256)) - set(b"0123456789"))


def script_of(text: str) -> str:
    """The script of most of its letters, one of SCRIPTS; `none` where it has no letter."""
    return spoken(text)[0]


def spoken_characters(text: str) -> int:
    """Letters and the marks on them, and what digits count for: what takes time to say."""
    return spoken(text)[1]


@lru_cache(maxsize=1)  # the same text is asked about by several
def spoken(text: str) -> tuple[str, int]:
    """The script of the text, and its spoken characters."""
    if text.isascii():
        line = text.encode()
        letters = len(line.translate(None, _NO_LETTER))
        return "latin" if letters else "none", letters + DIGIT_CHARACTERS * len(line.translate(None, _NO_DIGIT))
    kinds = Counter(map(_KINDS.__getitem__, text))
    digits, marks = kinds.pop("digit", 0), kinds.pop("mark", 0)
    kinds.pop("", None)
    script = max(sorted(kinds), key=kinds.__getitem__) if kinds else "none"
    each = SYLLABIC_DIGIT_CHARACTERS if script in SYLLABIC else DIGIT_CHARACTERS
    return script, kinds.total() + marks + each * digits


class _Kinds(dict[str, str]):
    """Of a character: its script, `digit`, `mark`, or nothing where it is not spoken. Made as characters come."""

    def __missing__(self, character: str) -> str:
        category = unicodedata.category(character)
        kind = {"N": "digit", "M": "mark"}.get(category[0], "")
        if category[0] == "L":
            words = unicodedata.name(character, "").split() or [""]
            kind = FIRST_WORDS.get(words[1] if words[0] in WIDTHS else words[0], "other")
        self[character] = kind
        return kind


_KINDS = _Kinds()
