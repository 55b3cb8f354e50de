"""Which checkpoint to ship, by which rule, on what evidence: selection.json, in numbers and in words.

Step 0 is the base model: judged, never selected. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from voxtrain.durable import read_log_rows, write_json
from voxtrain.fault import RunFailed
from voxtrain.run_folder import RunFolder
from voxtrain.statistics.envelope import lowest_ranges
from voxtrain.validation.evidence import FEWEST_GROUPS, LEVEL, LOSSES, Evidence


def select(run: RunFolder, evidence: Evidence, rule: str, not_judged: dict[int, str]) -> dict[str, Any]:
    """Choose by `rule`, write selection.json and return it.

    not_judged: why checkpoints that are there could not be judged. Raises RunFailed when none can be selected.
    """
    ranking = ranked(evidence)
    if not ranking:
        raise RunFailed("no trained checkpoint was judged with a finite loss, so none can be selected")
    best, last = ranking[0], max(evidence.steps)
    base = evidence.loss(0) if 0 in evidence.steps else math.nan
    choice: dict[str, Any] = {
        "selected_step": best,
        "tie_set": tie_set(evidence, ranking),
        "intervals": difference_intervals(evidence, best),
        "rule": rule,
        "runner_up": ranking[1] if len(ranking) > 1 else None,
        "final_is_best": best == last,
        "beats_base": evidence.loss(best) < base if math.isfinite(base) else None,
        "losses": {name: told_losses(evidence, step) for name, step in _named_steps(evidence, ranking).items()},
        "stop_weight_ranges": stop_weight_ranges(evidence, ranking),
        "loss_weights": dict(zip(("diff", "stop"), evidence.weights, strict=True)),
        "level": LEVEL,
        "groups": evidence.groups,
        "rows": evidence.rows,
        "draws": evidence.draws,
        "not_judged": [{"step": step, "reason": reason} for step, reason in sorted(not_judged.items())],
    }
    choice["warnings"] = warnings(run, evidence, choice)
    choice["reason"] = reason_in_words(choice)
    write_json(run.selection, choice)
    return choice


def ranked(evidence: Evidence) -> list[int]:
    """The trained checkpoints whose loss is finite, lowest loss/total first; of equals the earlier first."""
    totals = {step: evidence.loss(step) for step in evidence.steps if step > 0}
    return sorted((step for step, total in totals.items() if math.isfinite(total)), key=lambda s: (totals[s], s))


def tie_set(evidence: Evidence, ranking: Sequence[int]) -> list[int]:
    """The trained checkpoints that cannot be told from the best: all of them where there are too few groups."""
    intervals = {step: evidence.difference_interval(step, ranking[0]) for step in ranking}
    return sorted(step for step, found in intervals.items() if step == ranking[0] or found is None or found[0] <= 0)


def difference_intervals(evidence: Evidence, best: int) -> dict[str, dict[str, float | None]] | None:
    """Of each other step: loss/total less that of the best, with its interval. None where there are too few groups."""
    if evidence.resampled is None:
        return None
    intervals: dict[str, dict[str, float | None]] = {}
    for step in evidence.steps:
        found = evidence.difference_interval(step, best)
        if step != best and found is not None:
            numbers = {"difference": evidence.loss(step) - evidence.loss(best), "low": found[0], "high": found[1]}
            intervals[str(step)] = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    return intervals


def stop_weight_ranges(evidence: Evidence, ranking: Sequence[int]) -> list[dict[str, float | int | None]]:
    """Which checkpoint is lowest for which weight of the stop loss, the weight of diff as it is; no end: null."""
    steps = sorted(ranking)
    diff = [evidence.weights[0] * evidence.loss(step, "loss/diff") for step in steps]
    ranges = lowest_ranges(diff, [evidence.loss(step, "loss/stop") for step in steps])
    return [{"step": steps[r.index], "from": r.start, "to": r.end if math.isfinite(r.end) else None} for r in ranges]


def _named_steps(evidence: Evidence, ranking: Sequence[int]) -> dict[str, int]:
    named = {"selected": ranking[0], "final": max(evidence.steps)}
    named |= {"runner_up": ranking[1]} if len(ranking) > 1 else {}
    return named | ({"base": 0} if 0 in evidence.steps else {})


def told_losses(evidence: Evidence, step: int) -> dict[str, float | int | None]:
    """The losses of one step; null where they are not finite."""
    values = {name: evidence.loss(step, name) for name in LOSSES}
    return {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}


def warnings(run: RunFolder, evidence: Evidence, choice: dict[str, Any]) -> list[str]:
    """What a reader of the choice should know against it."""
    told = [f"Step {entry['step']} was not judged: {entry['reason']}" for entry in choice["not_judged"]]
    if evidence.resampled is None:
        told.append(
            f"The validation rows come from {_recordings(evidence.groups)}; with fewer than {FEWEST_GROUPS} no "
            "interval can be given, so any of the checkpoints may be the best one"
        )
    broken = [step for step in evidence.steps if not math.isfinite(evidence.loss(step))]
    if broken:
        told.append(f"The loss is not finite at step {', '.join(map(str, broken))}")
    if choice["beats_base"] is False:
        told.append("No checkpoint is better than the base model on held-out rows: this training has not helped")
    if choice["final_is_best"] and len(evidence.steps) > 2:
        told.append("The last checkpoint has the lowest loss: training longer may lower it further")
    return told + _heard(run, choice["selected_step"])


def _recordings(count: int) -> str:
    return f"{count} recording{'' if count == 1 else 's'}"


def _heard(run: RunFolder, selected: int) -> list[str]:
    """What listening found at the selected step, where it is worse than the base model."""
    samples = read_log_rows(run.listening_table)
    told = []
    for column, words in (("failed", "gave no sound"), ("runaway", "did not stop by themselves")):
        mine, base = ([s[column] for s in samples if int(s["step"]) == step] for step in (selected, 0))
        bad, bad_base = (sum(value not in ("", "False") for value in values) for values in (mine, base))
        if bad > bad_base:
            told.append(f"{bad} of {len(mine)} listening samples of step {selected} {words} (base model: {bad_base})")
    return told


def reason_in_words(choice: dict[str, Any]) -> str:
    """One paragraph: why this one, how sure, and what would change it."""
    step, losses = choice["selected_step"], choice["losses"]
    selected = losses["selected"]
    told = [
        f"Step {step} has the lowest held-out loss/total of the trained checkpoints: {selected['loss/total']:.4f} "
        f"(diff {selected['loss/diff']:.4f}, stop {selected['loss/stop']:.4f}), on {choice['rows']} rows of "
        f"{_recordings(choice['groups'])} under {choice['draws']} fixed draws each."
    ]
    told += _runner_up_in_words(choice)
    if choice["beats_base"] is not None:
        gain = losses["base"]["loss/total"] - selected["loss/total"]
        told.append(f"Step {step} lies {abs(gain):.4f} {'below' if gain > 0 else 'above'} the base model.")
    if choice["final_is_best"]:
        told.append("It is also the last checkpoint.")
    elif losses["final"]["loss/total"] is not None:
        more = losses["final"]["loss/total"] - selected["loss/total"]
        told.append(f"The last checkpoint, step {losses['final']['step']}, is {more:.4f} worse.")
    return " ".join([*told, *_weights_in_words(choice)])


def _runner_up_in_words(choice: dict[str, Any]) -> list[str]:
    losses, runner_up = choice["losses"], choice["runner_up"]
    if runner_up is None:
        return ["No other checkpoint could be selected."]
    words = f"The runner-up, step {runner_up}, is "
    words += f"{losses['runner_up']['loss/total'] - losses['selected']['loss/total']:.4f} worse"
    if choice["intervals"] is not None:
        found = choice["intervals"][str(runner_up)]
        words += f" ({choice['level']:.0%} interval {found['low']:+.4f} to {found['high']:+.4f})"
    others = [str(step) for step in choice["tie_set"] if step != choice["selected_step"]]
    if choice["intervals"] is None:
        return [words + ", with no interval from so few recordings."]
    if not others:
        return [words + "; no other ties with it."]
    return [words + f"; this split cannot tell {_listed(others)} from step {choice['selected_step']}."]


def _weights_in_words(choice: dict[str, Any]) -> list[str]:
    weight = choice["loss_weights"]["stop"]
    for found in choice["stop_weight_ranges"]:
        if found["step"] == choice["selected_step"] and found["from"] <= weight <= (found["to"] or math.inf):
            if found["from"] == 0 and found["to"] is None:
                return [f"Step {found['step']} wins whatever the weight of the stop loss."]
            end = "up" if found["to"] is None else f"to {found['to']:.3f}"
            span = f"from {found['from']:.3f} {end}"
            return [f"Step {found['step']} wins for weights of the stop loss {span}; this run's is {weight:g}."]
    return []


def _listed(names: Sequence[str]) -> str:
    return f"step {names[0]}" if len(names) == 1 else f"steps {', '.join(names[:-1])} and {names[-1]}"
