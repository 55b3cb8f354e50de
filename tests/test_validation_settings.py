"""The settings of the group `validation`: what is there yet, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from voxtrain.fault import InputError
from voxtrain.settings import compose

BASE = ["+recipe=demo"]


def test_the_defaults_compose() -> None:
    found = compose(BASE).validation
    assert (found.when, found.draws, found.rule, found.dtype) == ("after_training", 8, "earliest_in_tie_set", "fp32")
    assert (found.guards.runaway, found.guards.word_error_rate) == (0.3, 0.05)


def test_what_is_not_there_is_refused() -> None:
    words_for = {
        "validation.when=sometimes": "after_training",
        "validation.rule=highest": "lowest",
        "validation.guards.runaway=2": "less than or equal to 1",
        "validation.draws=0": "greater than 0",
        "validation.max_positions=-1": "greater than 0",
        "validation.dtype=fp16": "bf16",
        "validation.device=tpu": "cuda",
    }
    with pytest.raises(InputError) as caught:
        compose([*BASE, *words_for])
    faults: tuple[Any, ...] = caught.value.faults
    told = {fault.where: f"{fault.what}; {fault.remedy}" for fault in faults}
    assert len(faults) == len(told)
    assert told.keys() == {override.replace("=", " = ") for override in words_for}
    for override, words in words_for.items():
        assert words in told[override.replace("=", " = ")]
