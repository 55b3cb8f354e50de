"""When something is written, and what may change when a run goes on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner import checkpoint_plan
from pydantic import ValidationError

from voxtrain.checkpoint.changes import allowed_changes, fingerprint
from voxtrain.checkpoint.plan import CheckpointPlan

SETTINGS: dict[str, Any] = {
    "name": "demo",
    "seed": 1,
    "resume": None,
    "train": {"max_steps": 100, "max_rows": None, "batch_size": 2, "loss_weights": {"diff": 1.0, "stop": 1.0}},
    "optimizer": {"lr": 1e-5, "betas": [0.9, 0.999]},
    "checkpoint": {"every": 10, "weights": "bf16"},
    "validation": {"draws": 8},
    "listening": {"seeds": 1},
    "logger": {"mode": "online"},
}


def plan(every: int = 10, state_every: int = 7, early: tuple[int, ...] = ()) -> CheckpointPlan:
    return checkpoint_plan(every=every, state_every=state_every, early=early)


def changed(key: str, value: Any) -> dict[str, Any]:
    settings = copy.deepcopy(SETTINGS)
    *groups, name = key.split(".")
    node = settings
    for group in groups:
        node = node[group]
    node[name] = value
    return settings


@given(every=st.integers(1, 50), total=st.integers(0, 200), early=st.lists(st.integers(1, 250), max_size=4))
def test_steps_are_the_base_each_multiple_the_early_ones_and_the_last_each_once(
    every: int, total: int, early: list[int]
) -> None:
    asked = plan(every, early=tuple(early))
    steps = asked.steps(total)
    assert steps == sorted({0, total, *range(0, total + 1, every), *(step for step in early if step <= total)})
    assert steps == [step for step in range(total + 55) if asked.is_checkpoint(step, total)]


def test_states_have_a_rhythm_of_their_own() -> None:
    assert plan().steps(25) == [0, 10, 20, 25]
    assert plan().state_steps(25) == [0, 7, 14, 21, 25]
    assert [step for step in range(30) if plan().is_state(step, 25)] == [0, 7, 14, 21, 25]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"every": 0}, {"state_every": -1}, {"weights": "fp16"}, {"evry": 3}),
        *({"early": [0]}, {"buffer_gib": -1.0}, {"low_disk": "delete"}, {"requeue": "always"}),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    good = plan().model_dump()
    assert CheckpointPlan.model_validate(good) == plan()
    with pytest.raises(ValidationError):
        CheckpointPlan.model_validate({**good, **wrong})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.max_steps", 100),
        ("train.max_steps", 250),
        ("checkpoint.every", 1),
        ("validation.draws", 2),
        ("listening.seeds", 3),
        ("logger.mode", "offline"),
        ("resume", "outputs/demo/x"),
    ],
)
def test_what_may_change(key: str, value: Any) -> None:
    assert allowed_changes(SETTINGS, changed(key, value)) == []
    assert fingerprint(SETTINGS) == fingerprint(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.max_steps", 99),
        ("train.max_steps", None),
        ("train.loss_weights.stop", 0.5),
        ("train.batch_size", 1),
        ("optimizer.lr", 1e-4),
        ("optimizer.betas", [0.9, 0.99]),
        ("seed", 2),
    ],
)
def test_what_may_not_change_is_told_with_both_values(key: str, value: Any) -> None:
    before: Any = SETTINGS
    for part in key.split("."):
        before = before[part]
    [fault] = allowed_changes(SETTINGS, changed(key, value))
    assert fault.where == f"{key} = {value}"
    assert str(before) in fault.what


def test_all_forbidden_changes_are_told_at_once_also_new_and_dropped_keys() -> None:
    new = changed("seed", 5)
    new["optimizer"] = {"lr": 1e-5, "momentum": 0.9}
    faults = allowed_changes(SETTINGS, new)
    assert [fault.where.split(" = ")[0] for fault in faults] == ["optimizer.betas", "optimizer.momentum", "seed"]
    assert fingerprint(SETTINGS) != fingerprint(new)


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint(dict(reversed(SETTINGS.items()))) == fingerprint(SETTINGS)
