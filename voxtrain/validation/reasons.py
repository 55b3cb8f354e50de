"""A choice in words: why this checkpoint, how sure, what would change it, what to know against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from voxtrain.validation.evidence import FEWEST_GROUPS, Evidence

BY_HEART = 10
"""A held-out loss/stop that many times that of training: the stop head knows its clips, not how clips end."""


def in_words(choice: dict[str, Any]) -> str:
    """One paragraph."""
    return " ".join(
        [_why(choice), *_passed_over(choice), *_runner_up(choice), *_ends(choice), *_weight(choice), *_votes(choice)]
    )


def _why(choice: dict[str, Any]) -> str:
    step, losses = choice["selected_step"], choice["losses"]
    selected = losses["selected"]
    figures = (
        f"{selected['loss/total']:.4f} (diff {selected['loss/diff']:.4f}, stop {selected['loss/stop']:.4f}), on "
        f"{choice['rows']} rows of {_recordings(choice['groups'])} under {choice['draws']} fixed draws each."
    )
    if step == choice["best_step"]:
        earliest = choice["rule_in_force"] == "earliest_in_tie_set" and len(choice["tie_set"]) > 1
        more = ", and all that tie with it are later" if earliest and step == choice["tie_set"][0] else ""
        return f"Step {step} has the lowest held-out loss/total of the trained checkpoints{more}: {figures}"
    best, lead = losses["best"], "is the earliest checkpoint" if choice["passed_over"] == [] else "is the first left"
    return (
        f"Step {step} {lead} that this split cannot tell from the lowest, step {best['step']} "
        f"({best['loss/total']:.4f}). Its held-out loss/total is {figures}"
    )


def _passed_over(choice: dict[str, Any]) -> list[str]:
    return [f"Step {one['step']} was passed over: {'; '.join(one['reasons'])}." for one in choice["passed_over"]]


def _runner_up(choice: dict[str, Any]) -> list[str]:
    losses, runner_up = choice["losses"], choice["runner_up"]
    if runner_up is None:
        return ["No other checkpoint could be selected."]
    apart = losses["runner_up"]["loss/total"] - losses["selected"]["loss/total"]
    words = f"The runner-up, step {runner_up}, is {abs(apart):.4f} {'worse' if apart >= 0 else 'better'}"
    if choice["intervals"] is None:
        return [words + ", with no interval from so few recordings."]
    words += f" ({_interval(choice, runner_up)})"
    others = [step for step in choice["tie_set"] if step not in (choice["selected_step"], choice["best_step"])]
    if len(choice["tie_set"]) == 1:
        return [words + "; no other ties with the lowest."]
    if not others:
        return [words + "."]
    return [words + f"; this split cannot tell {listed(others)} from step {choice['best_step']} either."]


def _ends(choice: dict[str, Any]) -> list[str]:
    step, losses, told = choice["selected_step"], choice["losses"], []
    total = losses["selected"]["loss/total"]
    if choice["beats_base"] is not None:
        gain = losses["base"]["loss/total"] - total
        sure = f" ({_interval(choice, 0)})" if choice["intervals"] else ""
        told.append(f"The base model is {abs(gain):.4f} {'worse' if gain > 0 else 'better'} than step {step}{sure}.")
    if losses["final"]["step"] == step:
        told.append("It is also the last checkpoint.")
    elif losses["final"]["loss/total"] is not None:
        more = losses["final"]["loss/total"] - total
        told.append(
            f"The last checkpoint, step {losses['final']['step']}, is {abs(more):.4f} "
            f"{'worse' if more >= 0 else 'better'}."
        )
    return told


def _weight(choice: dict[str, Any]) -> list[str]:
    """Over which weights of the stop loss the lowest stays the lowest."""
    weight, best = choice["loss_weights"]["stop"], choice["best_step"]
    for found in choice["stop_weight_ranges"]:
        if found["step"] == best and found["from"] <= weight <= (found["to"] or math.inf):
            if found["from"] == 0 and found["to"] is None:
                return [f"Step {best} has the lowest loss whatever the weight of the stop loss."]
            end = "up" if found["to"] is None else f"to {found['to']:.3f}"
            span = f"from {found['from']:.3f} {end}"
            return [f"Step {best} is lowest for weights of the stop loss {span}; this run's is {weight:g}."]
    return []


def _votes(choice: dict[str, Any]) -> list[str]:
    """What blind votes say of the selected checkpoint, for or against."""
    told = []
    for found in choice["blind_votes"]:
        votes = {int(step): count for step, count in found["preferred"].items()}
        if choice["selected_step"] not in votes:
            continue
        (other,) = set(votes) - {choice["selected_step"]}
        mine, decided = votes[choice["selected_step"]], sum(votes.values())
        later = choice["selected_step"] == max(votes)
        low, high = (found["low"], found["high"]) if later else (1 - found["high"], 1 - found["low"])
        told.append(
            f"In blind votes between step {choice['selected_step']} and step {other} it was preferred {mine} of "
            f"{decided} times ({choice['level']:.0%} interval of the share {low:.2f} to {high:.2f})."
        )
    return told


def would_change(choice: dict[str, Any]) -> list[str]:
    """What, given otherwise, would have selected another checkpoint; or told more."""
    step, best, ties, told = choice["selected_step"], choice["best_step"], choice["tie_set"], []
    if choice["rule_in_force"] == "earliest_in_tie_set" and step != best:
        told.append(f"validation.rule=lowest would take step {best}")
    if choice["rule"] == "lowest" and choice["intervals"] is not None and ties[0] != step:
        told.append(f"validation.rule=earliest_in_tie_set would take step {ties[0]}, which ties with step {step}")
    if choice["passed_over"]:
        told.append(f"without the guards on listening samples it would be step {choice['passed_over'][0]['step']}")
    ranges = choice["stop_weight_ranges"]
    for before, after in pairwise(ranges):
        if after["step"] == best:
            told.append(f"with a stop loss that weighs under {after['from']:.3f} step {before['step']} would be lowest")
        if before["step"] == best:
            told.append(f"with a stop loss that weighs over {before['to']:.3f} step {after['step']} would be lowest")
    needed, runner_up = choice["recordings_needed"], choice["runner_up"]
    if needed is not None and runner_up in ties and needed > choice["groups"]:
        told.append(
            f"to tell step {runner_up} from step {step} would take about {needed:,} recordings like these "
            f"{choice['groups']}, were the difference as it was found"
        )
    return told


def warnings(evidence: Evidence, choice: dict[str, Any]) -> list[str]:
    """What a reader of the choice should know against it."""
    told = [f"Step {entry['step']} was not judged: {entry['reason']}" for entry in choice["not_judged"]]
    if evidence.estimates is None:
        told.append(
            f"The validation rows come from {_recordings(evidence.groups)}; with fewer than {FEWEST_GROUPS} no "
            f"interval can be given, so any of the checkpoints may be the best one (from {FEWEST_GROUPS} on, 95 % "
            "intervals held the truth in at least 92 % of simulated splits)"
        )
    elif evidence.estimates["loss/total"].degrees < FEWEST_GROUPS - 1:
        alike = 1 + evidence.estimates["loss/total"].degrees
        told.append(
            f"A few of the {_recordings(evidence.groups)} hold most of the validation rows: for the intervals they "
            f"count as {alike:.1f} of equal size"
        )
    broken = [step for step in evidence.steps if not math.isfinite(evidence.loss(step))]
    if broken:
        told.append(f"The loss is not finite at step {', '.join(map(str, broken))}")
    if choice["beats_base"] is False:
        told.append("No checkpoint is better than the base model on held-out rows: this training has not helped")
    elif choice["intervals"] and "0" in choice["intervals"] and (choice["intervals"]["0"]["low"] or 0) <= 0:
        told.append(f"Step {choice['selected_step']} is not surely better than the base model on held-out rows")
    if choice["final_is_best"] and len(evidence.steps) > 2:
        told.append("The last checkpoint has the lowest loss: training longer may lower it further")
    if choice["objections"]:
        told.append(
            f"Listening speaks against every checkpoint of the tie set; against step {choice['selected_step']}: "
            + "; ".join(choice["objections"])
        )
    return told + _learnt_by_heart(choice)


def _learnt_by_heart(choice: dict[str, Any]) -> list[str]:
    for entry in choice.get("stop_gauge") or []:
        train, held_out = entry["train"], entry["held_out"]
        known = entry["step"] == choice["selected_step"] and train is not None and held_out is not None
        if known and held_out > BY_HEART * train:
            return [
                f"At step {entry['step']} loss/stop is {held_out:.4g} on held-out rows and {train:.2g} in training: "
                "the stop head has learnt its clips by heart"
            ]
    return []


def _interval(choice: dict[str, Any], step: int) -> str:
    found = choice["intervals"][str(step)]
    if found["low"] is None:
        return "no interval"
    return f"{choice['level']:.0%} interval {found['low']:+.4f} to {found['high']:+.4f}"


def _recordings(count: int) -> str:
    return f"{count} recording{'' if count == 1 else 's'}"


def listed(steps: Sequence[int]) -> str:
    """`steps 1, 2 and 3`."""
    names = [str(step) for step in steps]
    return f"step {names[0]}" if len(names) == 1 else f"steps {', '.join(names[:-1])} and {names[-1]}"
