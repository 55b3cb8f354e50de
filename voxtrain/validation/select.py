"""Which checkpoint to ship, by which rule, on what evidence: selection.json, in numbers and in words.

Step 0 is the base model: judged, never selected. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from voxtrain.durable import write_json
from voxtrain.fault import RunFailed
from voxtrain.run_folder import RunFolder
from voxtrain.validation import reasons
from voxtrain.validation.evidence import FEWEST_GROUPS, LEVEL, LOSSES, POWER, Evidence
from voxtrain.validation.heard import Hearing
from voxtrain.validation.sensitivity import pareto_set, recordings_needed, stop_weight_ranges
from voxtrain.validation.settings import Guards, Rule

Detail = dict[str, Any]


@dataclass(frozen=True)
class Candidates:
    """The checkpoints that could be shipped."""

    ranking: list[int]  # lowest loss/total first
    ties: list[int]  # that cannot be told from the first of the ranking, ascending
    order: list[int]  # the tie set as the rule wants it
    objections: dict[int, list[str]]  # what listening says against them

    @property
    def selected(self) -> int:
        """The first that nothing speaks against; the first where something speaks against each."""
        return next((step for step in self.order if not self.objections[step]), self.order[0])

    @property
    def passed_over(self) -> list[int]:
        """Those before the selected one."""
        return self.order[: self.order.index(self.selected)]

    @property
    def runner_up(self) -> int | None:
        """What would be selected were the selected one not there."""
        tied = [step for step in self.order if step != self.selected]
        free = [step for step in tied if not self.objections[step]]
        return next((step for step in (*free, *tied, *self.ranking) if step != self.selected), None)


def select(
    run: RunFolder, evidence: Evidence, rule: Rule, guards: Guards, not_judged: dict[int, str], detail: Detail
) -> dict[str, Any]:
    """Choose by `rule` among those that no guard stops, write selection.json and return it.

    not_judged: why checkpoints that are there could not be judged. detail: losses in parts, which go with it. Raises
    RunFailed when none can be selected.
    """
    hearing = Hearing(run)
    found = candidates(evidence, rule, hearing, guards)
    selected, best = found.selected, found.ranking[0]
    base = evidence.loss(0) if 0 in evidence.steps else math.nan
    choice: dict[str, Any] = {
        "selected_step": selected,
        "tie_set": found.ties,
        "intervals": difference_intervals(evidence, selected),
        "rule": rule,
        "rule_in_force": rule if evidence.standing is not None else "lowest",
        "runner_up": found.runner_up,
        "best_step": best,
        "final_is_best": best == max(evidence.steps),
        "beats_base": evidence.loss(selected) < base if math.isfinite(base) else None,
        "losses": {name: told_losses(evidence, step) for name, step in _named_steps(evidence, found).items()},
        "passed_over": [{"step": step, "reasons": found.objections[step]} for step in found.passed_over],
        "objections": found.objections[selected],
        "stop_weight_ranges": stop_weight_ranges(evidence),
        "pareto_set": pareto_set(evidence),
        "loss_weights": dict(zip(("diff", "stop"), evidence.weights, strict=True)),
        "p_best": _by_step(evidence, evidence.standing and evidence.standing.p_best),
        "detectable_difference": detectable_difference(evidence, best),
        "recordings_needed": recordings_needed(evidence, found.runner_up, selected),
        "fewest_recordings": FEWEST_GROUPS,
        "level": LEVEL,
        "power": POWER,
        "groups": evidence.groups,
        "rows": evidence.rows,
        "draws": evidence.draws,
        "steps": list(evidence.steps),  # among which it was chosen: pruning deletes no other
        "not_judged": [{"step": step, "reason": reason} for step, reason in sorted(not_judged.items())],
        "blind_votes": [compared.to_record() for compared in hearing.comparisons],
        **detail,
    }
    choice["would_change"] = reasons.would_change(choice)
    choice["warnings"] = reasons.warnings(evidence, choice) + hearing.worse_than_base(selected) + hearing.lapsed
    choice["reason"] = reasons.in_words(choice)
    write_json(run.selection, choice)
    return choice


def candidates(evidence: Evidence, rule: Rule, hearing: Hearing, guards: Guards) -> Candidates:
    """Who could be shipped. With too few recordings all tie, and the lowest loss counts. Raises RunFailed for none."""
    ranking = ranked(evidence)
    if not ranking:
        raise RunFailed("no trained checkpoint was judged with a finite loss, so none can be selected")
    ties = tie_set(evidence)
    earliest = rule == "earliest_in_tie_set" and evidence.standing is not None
    order = ties if earliest else [step for step in ranking if step in ties]
    return Candidates(ranking, ties, order, _objections(ties, hearing, guards))


def _objections(ties: Sequence[int], hearing: Hearing, guards: Guards) -> dict[int, list[str]]:
    """What listening says against each. Scores of one that must not be shipped say nothing of others."""
    against = {step: hearing.objections(step, guards) for step in ties}
    free = [step for step in ties if not against[step]]
    for step in free:
        against[step] = hearing.outscored(step, free, guards)
    return {step: told + hearing.outvoted(step, (0, *ties), guards.preferred) for step, told in against.items()}


def ranked(evidence: Evidence) -> list[int]:
    """The trained checkpoints whose loss is finite, lowest loss/total first; of equals the earlier first."""
    return sorted(evidence.trained, key=lambda step: (evidence.loss(step), step))


def tie_set(evidence: Evidence) -> list[int]:
    """The trained checkpoints that cannot be told from the best: all of them where there are too few groups."""
    found = evidence.standing
    return evidence.trained if found is None else [evidence.trained[place] for place in found.tie_set(LEVEL)]


def difference_intervals(evidence: Evidence, selected: int) -> dict[str, dict[str, float | None]] | None:
    """Of each other step: loss/total less that of the selected, its interval, and what could have been shown.

    Each interval is for that one comparison; the tie set allows for all of them. None where there are too few groups.
    """
    if evidence.estimates is None:
        return None
    intervals: dict[str, dict[str, float | None]] = {}
    for step in evidence.steps:
        found = evidence.difference_interval(step, selected)
        if step != selected and found is not None:
            numbers = {"difference": evidence.loss(step) - evidence.loss(selected), "low": found[0], "high": found[1]}
            numbers["detectable"] = evidence.detectable_difference(step, selected) or 0.0
            intervals[str(step)] = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return intervals


def detectable_difference(evidence: Evidence, best: int) -> float | None:
    """The difference to the best that this split shows of a trained checkpoint, in the middle of them."""
    found = [evidence.detectable_difference(step, best) for step in evidence.trained if step != best]
    known = [value for value in found if value is not None]
    return median(known) if known else None


def told_losses(evidence: Evidence, step: int) -> dict[str, float | int | None]:
    """The losses of one step; null where they are not finite."""
    values = {name: evidence.loss(step, name) for name in LOSSES}
    return {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}


def _named_steps(evidence: Evidence, found: Candidates) -> dict[str, int]:
    named = {"selected": found.selected, "best": found.ranking[0], "final": max(evidence.steps)}
    named |= {} if found.runner_up is None else {"runner_up": found.runner_up}
    return named | ({"base": 0} if 0 in evidence.steps else {})


def _by_step(evidence: Evidence, values: Sequence[float] | Any) -> dict[str, float] | None:
    return None if values is None else {str(s): float(v) for s, v in zip(evidence.trained, values, strict=True)}
