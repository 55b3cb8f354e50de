"""Numbers and verdicts in words, the same on every page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voxtrain.report.evidence import Evidence, number, whole

NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def loss(value: float) -> str:
    """A loss with four decimals."""
    return f"{value:.4f}" if math.isfinite(value) else NOTHING


def signed(value: float) -> str:
    """A difference of losses, with its sign."""
    return f"{value:+.4f}".replace("-", MINUS) if math.isfinite(value) else NOTHING


def count(value: float | None) -> str:
    """A whole number with separators."""
    return f"{value:,.0f}" if value is not None and math.isfinite(value) else NOTHING


def gib(value: float) -> str:
    """Memory, GiB; what is small with two figures."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:.2f} GiB" if value >= 0.1 else f"{value:.2g} GiB"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{value:.1%}".replace("%", " %") if math.isfinite(value) else NOTHING


def error(value: float) -> str:
    """A relative error, with its sign."""
    return f"{value:+.0%}".replace("%", " %").replace("-", MINUS) if math.isfinite(value) else NOTHING


def span(seconds: float) -> str:
    """A length of time in the two units that suit it."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def brief(seconds: float) -> str:
    """A length of time that may be a fraction of a second."""
    return f"{seconds:.2g} s" if seconds < 1 else span(seconds)


def listed(values: Sequence[int]) -> str:
    """`1, 2 and 3`."""
    *head, last = [f"{value:,}" for value in values]
    return f"{', '.join(head)} and {last}" if head else last


def verdict(evidence: Evidence) -> list[str]:
    """What was selected and why: the first sentence is the choice, the others are what to know about it."""
    selected = evidence.judged(evidence.selected_step)
    if evidence.selected_step is None or selected is None:
        return [_no_choice(evidence)]
    total = number(selected.get("loss/total"))
    trained = [row for row in evidence.checkpoints if whole(row.get("step"))]
    lowest = min(number(row.get("loss/total")) for row in trained) == total
    why = f"the lowest of {len(trained)} trained checkpoints" if lowest else "the choice of the rule below"
    sentences = [f"Ship step {evidence.selected_step:,}: its held-out loss/total of {loss(total)} is {why}."]
    sentences.append(_against_base(evidence, total))
    ties = [step for step in evidence.ties if step != evidence.selected_step]
    if ties:
        sentences.append(f"This split cannot tell it from step {listed(ties)}.")
    sentences.append(_final(evidence, total))
    return [sentence for sentence in sentences if sentence]


def _no_choice(evidence: Evidence) -> str:
    if evidence.setting("validation.when") == "never":
        return "No checkpoint was judged, as was asked for: validation.when is never."
    if evidence.checkpoints:
        return f"{len(evidence.checkpoints)} checkpoints are judged; none is selected yet."
    return "No checkpoint is judged yet."


def _against_base(evidence: Evidence, total: float) -> str:
    base = evidence.judged(0)
    if base is None:
        return ""
    before = number(base.get("loss/total"))
    if total >= before or (evidence.selection or {}).get("beats_base") is False:
        return f"It does not beat the base model, which has {loss(before)}."
    return f"That is {loss(before - total)} ({share((before - total) / before)}) below the base model's {loss(before)}."


def _final(evidence: Evidence, total: float) -> str:
    final = evidence.judged(evidence.final_step)
    if final is None:
        return ""
    if evidence.final_step == evidence.selected_step:
        return "It is also the last checkpoint."
    above = number(final.get("loss/total")) - total
    return f"The last checkpoint, step {evidence.final_step:,}, is {loss(above)} above it." if above > 0 else ""
