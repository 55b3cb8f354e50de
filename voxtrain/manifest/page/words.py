"""Numbers, values and rules in words, the same all over the audit page and the comparison of two audits."""

from __future__ import annotations

import math
import re
from typing import Any

NOTHING, MINUS, THIN = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"

RULES = {
    "excluded": "listed in the file of excluded rows",
    "invalid_value": "a value of the wrong type, or text that is not Unicode",
    "empty_text": "no letter and no digit in the text",
    "boilerplate": "a line that subtitles and speech recognisers put where nobody speaks",
    "no_group": "the row has no group, so it can lie in no split without a risk of leakage",
    "missing_audio": "no path, or no file at it",
    "unreadable_audio": "a file that cannot be opened, or holds no samples",
    "truncated_audio": "the file ends before its header says so",
    "too_short": "shorter than clean.min_seconds",
    "too_long": "longer than clean.max_seconds",
    "silent": "nothing to be heard",
    "clipped": "the recording was too loud for its format: its peaks are cut flat",
    "dc_offset": "the whole recording is shifted off zero",
    "chars_per_second": "more or fewer letters a second than anybody speaks: text and audio do not belong together",
    "own_reference": "the reference audio is the row's own clip",
    "word_error_rate": "speech recognition hears another text",
    "duplicate": "the same samples again; the smallest (hash, id) stays",
    "leading_silence": "a long silence before the first sound",
    "tail_silence": "a long silence after the last sound: fine-tuned models learn to go on after the text",
    "upsampled": "no energy above a lower Nyquist: the sample rate promises more than the recording holds",
    "rare_script": "written in a script unlike that of the other rows",
}
"""What a rule looks for, where the page knows; a rule that it does not know is shown by its name alone."""

UNITS = {
    **dict.fromkeys(("too_short", "too_long", "leading_silence", "tail_silence"), "s"),
    **dict.fromkeys(("clipped", "truncated_audio", "word_error_rate"), "%"),
    "chars_per_second": "a second",
    "silent": "dB",
    "upsampled": "Hz",
}
"""The unit of what a rule measures, where it has one; %: a share."""

# What may not stand in a page as it is: halves of surrogate pairs (they cannot be encoded), control characters, and
# the marks that turn the direction of everything after them.
HARMFUL = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def harmless(value: Any) -> Any:
    """A text without characters that would break the page or its reader's eyes: they are shown escaped."""
    return HARMFUL.sub(_escaped, value) if type(value) is str else value


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def number(value: Any) -> float:
    """A number of a JSON file; NaN where there is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def count(value: Any) -> str:
    """A whole number with separators."""
    found = number(value)
    return f"{found:,.0f}" if math.isfinite(found) else NOTHING


def counted(value: int, what: str) -> str:
    """`1 group`, `2 groups`."""
    return f"{value:,} {what}" if value == 1 else f"{value:,} {what}s"


def share(value: Any) -> str:
    """A share in per cent; what is small with one figure more."""
    found = number(value)
    if not math.isfinite(found):
        return NOTHING
    if 0.9995 <= found < 1:
        return f">{THIN}99.9{THIN}%"  # not all, which rounding would say
    places = 2 if 0 < abs(found) < 0.01 else 1
    return f"{found * 100:.{places}f}{THIN}%"


def span(seconds: Any) -> str:
    """A length of audio in the two units that suit it."""
    found = number(seconds)
    if not math.isfinite(found):
        return NOTHING
    if found < 59.95:
        return f"{found:.2f} s" if 0 < found < 0.995 else f"{found:.1f} s"
    minutes, rest = divmod(round(found), 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def brief(seconds: Any) -> str:
    """A length of audio in one unit, for tables in a terminal."""
    found = number(seconds)
    if not math.isfinite(found):
        return NOTHING
    if found < 60:
        return f"{found:.1f} s"
    return f"{found / 60:.1f} min" if found < 3600 else f"{found / 3600:,.2f} h"


def figure(value: Any) -> str:
    """A measure with three figures at least, and no exponent where it can be helped."""
    found = number(value)
    if not math.isfinite(found):
        return NOTHING
    text = f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.3g}"
    return text.replace("-", MINUS)


def decimals(value: Any, places: int) -> str:
    """A measure with so many decimals."""
    found = number(value)
    return f"{found:,.{places}f}".replace("-", MINUS) if math.isfinite(found) else NOTHING


def measured(value: Any, rule: str) -> str:
    """What a rule saw, or its threshold, in the rule's unit."""
    unit = UNITS.get(rule, "")
    if isinstance(value, str):
        return shown(value, 100)
    if not unit or not math.isfinite(number(value)):
        return shown(value)
    return share(value) if unit == "%" else f"{figure(value)} {unit}"


def shown(value: Any, letters: int = 200) -> str:
    """What a rule saw, or its threshold, as a reader sees it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return figure(value)
    text = value if isinstance(value, str) else str(value)
    text = text if text.strip() else f"{text!r}"
    return text if len(text) <= letters else f"{text[:letters]}\N{HORIZONTAL ELLIPSIS}"
