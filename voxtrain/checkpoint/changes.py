"""What may change when a run goes on. Everything else would make the rest of the run another run. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from voxtrain.fault import Fault

MAY_CHANGE = (
    *("resume", "validation", "listening", "logger", "checkpoint", "trainer.devices"),
    *("data.cache_dir", "model.cache_dir", "memory.card", "memory.force", "memory.probe", "train.schedule_on_resume"),
)
"""Settings, and groups of them, that say what is written or judged, and where, and not what is learnt.

With another number of processes every step has the same rows and draws; its sums are taken in another order, so the
run goes on equal up to the last bits, and not bit for bit.
"""

COURSE = ("optimizer.lr", "schedule", "train.schedule_steps")
"""What the learning rate follows: may change where `train.schedule_on_resume` is `new`, as is said on purpose."""

MAY_GROW = ("train.max_steps",)
"""Settings that may be raised."""


def allowed_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Fault]:
    """The changes between a run's settings and those it is to go on with that are not allowed, one fault each.

    Both are plain nested settings, as config.yaml holds them. Allowed are `MAY_CHANGE`, a larger `MAY_GROW` and, where
    the new settings say so, `COURSE`.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    faults = []
    for key in sorted({*before, *after}):
        old_value, new_value = before.get(key), after.get(key)
        free = _is_in(key, (*MAY_CHANGE, *COURSE) if course_may_change(new) else MAY_CHANGE)
        if old_value != new_value and not free and not (key in MAY_GROW and _grows(old_value, new_value)):
            faults.append(_fault(key, old_value, new_value))
    return faults


def _fault(key: str, old: Any, new: Any) -> Fault:
    if _is_in(key, COURSE):
        reason = "a run keeps the course of its learning rate unless something else is said"
        remedy = f"say train.schedule_on_resume=new as well, or leave {key} as it was"
    else:
        reason = "it may only grow" if key in MAY_GROW else "it would no longer be the same run"
        remedy = f"leave {key} as it was, or start a new run; what may change is {_what_may_change()}"
    return Fault(f"{key} = {new}", f"the run was started with {old}, and {reason}", remedy)


def can_change(key: str) -> bool:
    """Whether there is a choice under which a setting may be another when a run goes on."""
    return _is_in(key, (*MAY_CHANGE, *MAY_GROW, *COURSE))


def course_may_change(settings: Mapping[str, Any]) -> bool:
    """Whether a resumed run may follow another course of the learning rate."""
    return dict(_flat(settings)).get("train.schedule_on_resume") == "new"


def other_course(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the learning rate of a run that goes on leaves the course that it would have followed."""
    before, after = dict(_flat(old)), dict(_flat(new))
    changed = (key for key in {*before, *after} if before.get(key) != after.get(key))
    return course_may_change(new) and any(_is_in(key, (*COURSE, *MAY_GROW)) for key in changed)


def fingerprint(settings: Mapping[str, Any], *, course: bool = True) -> str:
    """A sha256 of everything that may not change: equal fingerprints learn the same.

    course: with that of the learning rate. The steps that it is laid over are not in it: they change with max_steps.
    """
    left_out = (*MAY_CHANGE, *MAY_GROW, *(("train.schedule_steps",) if course else COURSE))
    fixed = {key: value for key, value in _flat(settings) if not _is_in(key, left_out)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_in(key: str, names: Sequence[str]) -> bool:
    return key in names or key.split(".", 1)[0] in names


def _grows(old: Any, new: Any) -> bool:
    return isinstance(old, int) and isinstance(new, int) and new >= old


def _what_may_change() -> str:
    told = [f"{MAY_GROW[0]} (upwards)", *(name for name in MAY_CHANGE if name != "resume")]
    return f"{', '.join(told)}, and with train.schedule_on_resume=new {', '.join(COURSE)}"
