"""The learning rate's course: transformers' where upstream uses it, and what the settings say elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from voxtrain.optim.schedule import WarmupConstant, WarmupCosine


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (10, 10), (20, 10), (100, 1000)])
def test_cosine_is_transformers(warmup: int, total: int) -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    ours = WarmupCosine(warmup_steps=warmup, final_share=0.0)
    for step in range(total):
        assert ours.factor(step, total) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-15)
        optimizer.step()
        scheduler.step()


@given(warmup=st.integers(0, 50), total=st.integers(1, 200), share=st.floats(0, 1), step=st.integers(0, 400))
def test_factors_stay_between_their_ends(warmup: int, total: int, share: float, step: int) -> None:
    cosine = WarmupCosine(warmup_steps=warmup, final_share=share).factor(step, total)
    constant = WarmupConstant(warmup_steps=warmup).factor(step, total)
    assert 0 <= cosine <= constant <= 1
    if step >= warmup:
        assert cosine >= share - 1e-12
        assert constant == 1


def test_cosine_ends_at_its_final_share() -> None:
    schedule = WarmupCosine(warmup_steps=10, final_share=0.1)
    assert schedule.factor(10, 110) == 1.0
    assert schedule.factor(60, 110) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule.factor(109, 110) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
    assert schedule.factor(110, 110) == pytest.approx(0.1)
    assert schedule.factor(500, 110) == pytest.approx(0.1)


@pytest.mark.parametrize("change", [{"warmup_steps": -1}, {"final_share": 1.1}, {"final_share": -0.1}, {"warmup": 1}])
def test_settings_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        WarmupCosine.model_validate({"warmup_steps": 1, "final_share": 0.0, **change})
