"""What may change when a run goes on. Everything else would make the rest of the run another run. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from voxtrain.fault import Fault

MAY_CHANGE = ("resume", "validation", "listening", "logger", "checkpoint", "trainer.devices")
"""Settings, and groups of them, that say what is written or judged and not what is learnt.

With another number of processes every step has the same rows and draws; its sums are taken in another order, so the
run goes on equal up to the last bits, and not bit for bit.
"""

MAY_GROW = ("train.max_steps",)
"""Settings that may be raised."""


def allowed_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Fault]:
    """The changes between a run's settings and those it is to go on with that are not allowed, one fault each.

    Both are plain nested settings, as config.yaml holds them. Allowed are `MAY_CHANGE` and a larger `MAY_GROW`.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    faults = []
    for key in sorted({*before, *after}):
        old_value, new_value = before.get(key), after.get(key)
        if old_value == new_value or _is_free(key) or (key in MAY_GROW and _grows(old_value, new_value)):
            continue
        reason = "it may only grow" if key in MAY_GROW else "it would no longer be the same run"
        faults.append(
            Fault(
                f"{key} = {new_value}",
                f"the run was started with {old_value}, and {reason}",
                f"leave {key} as it was, or start a new run; what may change is {_what_may_change()}",
            )
        )
    return faults


def fingerprint(settings: Mapping[str, Any]) -> str:
    """A sha256 of everything that may not change: equal fingerprints learn the same."""
    fixed = {key: value for key, value in _flat(settings) if not _is_free(key) and key not in MAY_GROW}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_free(key: str) -> bool:
    return key in MAY_CHANGE or key.split(".", 1)[0] in MAY_CHANGE


def _grows(old: Any, new: Any) -> bool:
    return isinstance(old, int) and isinstance(new, int) and new >= old


def _what_may_change() -> str:
    return ", ".join([f"{MAY_GROW[0]} (upwards)", *(name for name in MAY_CHANGE if name != "resume")])
