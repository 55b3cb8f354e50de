"""Shares of yes among independent answers, exactly: the interval of Clopper and Pearson, and the test of one half.

C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial"
(Biometrika, 1934). It holds the truth at least as often as it says, however few the answers.
"""

from __future__ import annotations

import math

HALVINGS = 60
"""Of an interval of length 1: down to the last bit of a float."""


def at_least(yes: int, answers: int, share: float) -> float:
    """The probability of at least `yes` among that many answers, each yes with probability `share`."""
    if not 0 <= yes <= answers:
        raise ValueError(f"there are no {yes} among {answers} answers")
    if share in (0, 1):
        return float(yes == 0 or share == 1)
    log_yes, log_no = math.log(share), math.log1p(-share)
    whole = math.lgamma(answers + 1)
    logs = [
        whole - math.lgamma(k + 1) - math.lgamma(answers - k + 1) + k * log_yes + (answers - k) * log_no
        for k in range(yes, answers + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def interval(yes: int, answers: int, level: float) -> tuple[float, float]:
    """Both ends of the interval of the share; of no answers, from 0 to 1."""
    tail = (1 - level) / 2
    low = 0.0 if yes == 0 else _where(yes, answers, tail)
    high = 1.0 if yes == answers else 1 - _where(answers - yes, answers, tail)
    return low, high


def p_value_of_half(yes: int, answers: int) -> float:
    """How probable answers as one-sided as these, or more so, are where yes and no are equally likely."""
    return min(1.0, 2 * at_least(max(yes, answers - yes), answers, 0.5))


def _where(yes: int, answers: int, tail: float) -> float:
    """The share at which `at_least` is `tail`; it rises with the share."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if at_least(yes, answers, middle) < tail else (low, middle)
    return (low + high) / 2
