"""What to do next: from the findings of an audit to settings and commands, the most rewarding first.

Each piece of advice is a function of the audit and the certificate that answers with the step to take, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtrain.manifest.page.commands import compare
from voxtrain.manifest.page.facts import Facts
from voxtrain.manifest.page.words import count, counted, figure, harmless, number, share, shown

NOTABLE = 0.01  # of the rows: a rule that fires on fewer is not worth a line of advice
OFTEN_SAID = 0.002  # of the rows: a text repeated on more may be boilerplate
FEW_VALIDATION_GROUPS = 5  # below it there are no confidence intervals
LONG_TAIL_S, KEPT_TAIL_S = 0.8, 0.3


@dataclass(frozen=True)
class Step:
    """One thing to do: what was found, why it matters and what to do about it, and what to type, if anything."""

    finding: str
    action: str
    command: str = ""


def what_to_do(audit: Mapping[str, Any], split: Mapping[str, Any], folder: Path) -> list[Step]:
    """The steps to take, in order; the last is what comes after them."""
    facts = Facts(audit, split, folder)
    return [step for advice in ADVICE if (step := advice(facts)) is not None]


def _no_cleaning(found: Facts) -> Step | None:
    rules = found.audit.get("rejects_by_rule") or {}
    if "empty_text" in rules or not rules:
        return None
    return Step(
        "Cleaning is switched off",
        "Rows that teach the model nothing, or the wrong thing, are kept. See what the rules would say of them.",
        f"python -m voxtrain.manifest {found.data} clean=standard out=audit_clean",
    )


def _row_groups(found: Facts) -> Step | None:
    if found.audit.get("group_by") != "row":
        return None
    return Step(
        "Rows are split one by one",
        "Neighbours of one recording lie in training and in validation, so that held-out losses look better than they "
        "are. Name what belongs together: a column, several, or a regular expression on the path.",
        f"python -m voxtrain.manifest {found.manifest} data.group_by=parent out=audit_grouped",
    )


def _too_many(found: Facts) -> Step | None:
    rejected, allowed = number(found.audit.get("reject_share")), number(found.setting("clean", "max_reject_share"))
    if not rejected > allowed:
        return None
    return Step(
        f"{share(rejected)} of the rows are rejected, {share(allowed)} are allowed",
        "Listen to the worst rows below before anything else. Where the rules are right, allow it.",
        f"clean.max_reject_share={math.ceil(rejected * 100) / 100:g}",
    )


def _no_text(found: Facts) -> Step | None:
    rows = found.rows("empty_text")
    if found.part(rows) < NOTABLE:
        return None
    return Step(
        f"{count(rows)} rows ({share(found.part(rows))}) have no text",
        "They are left out. If transcripts exist somewhere, a step before this one lost them: mend it and gain the "
        "audio; else transcribe the clips, or leave them.",
        found.listed("empty_text"),
    )


def _lost_audio(found: Facts) -> Step | None:
    missing, unreadable = found.rows("missing_audio"), found.rows("unreadable_audio", "truncated_audio")
    if not missing + unreadable:
        return None
    folder = harmless(str(Path(str(found.audit.get("manifest") or ".")).parent))
    return Step(
        f"{counted(missing, 'audio file')} missing, {unreadable:,} damaged",
        f"Relative paths start at {folder}. Copy or cut these again; a whole folder missing is most often a path.",
        found.listed("missing_audio" if missing else "unreadable_audio"),
    )


def _boilerplate(found: Facts) -> Step | None:
    lines = [line for line in found.audit.get("repeated_lines") or [] if isinstance(line, dict)]
    often = [line for line in lines if found.part(number(line.get("rows"))) >= OFTEN_SAID and line["rows"] >= 3]
    if not often:
        return None
    first = shown(str(often[0].get("text")), 60)
    return Step(
        f"The line \N{LEFT DOUBLE QUOTATION MARK}{first}\N{RIGHT DOUBLE QUOTATION MARK} stands on "
        f"{count(often[0].get('rows'))} rows",
        "Listen to two of them. If it is not said, add it to the patterns of clean.boilerplate in a copy of "
        "conf/clean/standard.yaml. The list below has more such lines; none is dropped by itself.",
    )


def _tails(found: Facts) -> Step | None:
    if found.setting("clean", "trim_tail_silence") is not None:
        return None
    tail_s, rows = found.quantile("tail_silence_s", "p95"), found.told("tail_silence")
    if not (tail_s >= LONG_TAIL_S or found.part(rows) >= NOTABLE):
        return None
    seen = f"{count(rows)} rows end in a long silence" if rows else "One clip in twenty ends in silence"
    if math.isfinite(tail_s):
        seen += f": one in twenty has {tail_s:.2f} s or more"
    return Step(
        seen,
        f"Silence at the end returns in the output as speech that does not stop. Keep {KEPT_TAIL_S} s of it; files "
        "stay as they are, the rest is cut on loading.",
        f"clean.trim_tail_silence={KEPT_TAIL_S}",
    )


def _too_long(found: Facts) -> Step | None:
    rows = found.rows("too_long")
    if found.part(rows) < NOTABLE:
        return None
    bound = number(found.setting("clean", "max_seconds"))
    return Step(
        f"{count(rows)} rows ({share(found.part(rows))}) are longer than {figure(bound)} s",
        "Cut them at pauses. A higher bound costs memory: ask what fits first.",
        f"python -m voxtrain.memory +recipe=lora_24gb {found.data} clean.max_seconds={figure(2 * bound)}",
    )


def _too_short(found: Facts) -> Step | None:
    rows = found.rows("too_short")
    if found.part(rows) < NOTABLE:
        return None
    return Step(
        f"{count(rows)} rows ({share(found.part(rows))}) are too short to hold a word",
        "Slices of milliseconds come from a cutting tool: look at its settings.",
        found.listed("too_short"),
    )


def _mismatch(found: Facts) -> Step | None:
    rows = found.rows("chars_per_second", "word_error_rate")
    if found.part(rows) < NOTABLE:
        return None
    return Step(
        f"On {count(rows)} rows ({share(found.part(rows))}) text and audio do not belong together",
        "Listen to the worst below. Where texts are shifted by a row, the alignment broke and its neighbours are "
        "wrong too; speech recognition tells how many.",
        f"python -m voxtrain.manifest {found.data} clean=asr out=audit_asr",
    )


def _recordings(found: Facts) -> Step | None:
    rows = found.rows("clipped", "silent", "dc_offset")
    told = found.told("upsampled")
    if found.part(rows) >= NOTABLE:
        what = f"{count(rows)} rows ({share(found.part(rows))}) are silent, clipped or off zero"
        return Step(what, "Export them again from the source at a lower level; what is cut flat cannot be mended.")
    if found.part(told) < NOTABLE:
        return None
    return Step(
        f"{count(told)} rows ({share(found.part(told))}) hold less than their sample rate promises",
        "They were resampled from a lower rate, or coded narrowly. They are kept; use the originals if you have them, "
        "since the model learns the dull sound.",
    )


def _same_text(found: Facts) -> Step | None:
    pairs = [pair for pair in (found.split.get("near_text") or {}).values() if isinstance(pair, dict)]
    texts = sum(pair.get("shared") or 0 for pair in pairs)
    if not texts:
        return None
    return Step(
        f"{counted(texts, 'text')} stand in two splits, or nearly do" if texts > 1 else "A text stands in two splits",
        "Sentences that were read twice make held-out losses look better. They are only reported; where one recording "
        "was cut twice, group by what holds both.",
    )


def _same_recording(found: Facts) -> Step | None:
    pairs = [pair for pair in (found.split.get("neighbours") or {}).values() if isinstance(pair, dict)]
    rows = sum(pair.get("adjacent_rows") or 0 for pair in pairs)
    if not rows or found.audit.get("group_by") == "row":
        return None
    return Step(
        f"{counted(rows, 'row')} beside a row of another split",
        "By their file names these are slices of one recording. Group by that part of the path that names it.",
        f"python -m voxtrain.manifest {found.manifest} 'data.group_by=\"([^/]+)_[0-9]+[.]\"' out=audit_grouped",
    )


def _few_groups(found: Facts) -> Step | None:
    groups = number(((found.audit.get("splits") or {}).get("validation") or {}).get("groups"))
    if not groups < FEW_VALIDATION_GROUPS:
        return None
    return Step(
        f"Validation has {counted(int(groups), 'group')}",
        f"Under {FEW_VALIDATION_GROUPS} there are no confidence intervals, and the choice of a checkpoint is a guess. "
        "Hold out more, or add recordings.",
        "split=small",
    )


def _compare(found: Facts) -> Step | None:
    if not number(found.audit.get("rows_in")) > number(found.audit.get("rows_kept")):
        return None
    return Step(
        "After mending",
        "Audit again into another folder, and see what the mending changed.",
        compare(found.folder),
    )


def _train(found: Facts) -> Step | None:
    if found.audit.get("refused") or not found.audit.get("splits"):
        return None
    return Step(
        "Then train",
        "Two thousand steps judge the data before a night does.",
        f"python -m voxtrain +recipe=preflight {found.data}",
    )


ADVICE: tuple[Callable[[Facts], Step | None], ...] = (
    _no_cleaning,
    _row_groups,
    _too_many,
    _no_text,
    _lost_audio,
    _mismatch,
    _boilerplate,
    _tails,
    _too_long,
    _too_short,
    _recordings,
    _same_text,
    _same_recording,
    _few_groups,
    _compare,
    _train,
)
