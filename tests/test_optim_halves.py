"""An fp32 weight in a bf16 one: split exactly, or rounded at random with an exact mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxtrain.optim.halves import join, round_at_random, split

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda x: abs(x) < 3.3e38)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(count: int) -> torch.Tensor:
    """Numbers of both signs over many magnitudes, zeros among them."""
    gen = generator(1)
    values = torch.randn(count, generator=gen) * torch.exp2(torch.randint(-30, 30, (count,), generator=gen).float())
    values[:3] = torch.tensor([0.0, -0.0, 1.0])
    return values


def halves(wide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    narrow, remainder = torch.empty(wide.shape, dtype=torch.bfloat16), torch.empty(wide.shape, dtype=torch.int16)
    split(wide, narrow, remainder)
    return narrow, remainder


@given(st.lists(FINITE, min_size=1, max_size=8))
def test_two_halves_are_the_number_to_the_last_bit(values: list[float]) -> None:
    wide = torch.tensor(np.array(values, dtype=np.float32))
    narrow, remainder = halves(wide)
    assert torch.equal(join(narrow, remainder).view(torch.int32), wide.view(torch.int32))
    apart, nearest = (narrow.float() - wide).abs(), (wide.bfloat16().float() - wide).abs()
    assert torch.equal(apart, nearest), "the upper half is not the nearest bf16 number"


def test_halves_of_many_numbers_and_of_every_tie() -> None:
    ties = (torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16) + 0x8000  # half way between two bf16 numbers
    ties = ties.view(torch.float32)
    wide = torch.cat([spread(100_000), ties[ties.isfinite() & (ties.abs() < 3.3e38)]])
    assert torch.equal(join(*halves(wide)).view(torch.int32), wide.view(torch.int32))


def test_random_rounding_goes_to_one_of_the_two_neighbours() -> None:
    wide = spread(100_000)
    below = (wide.view(torch.int32) & ~0xFFFF).view(torch.float32)  # towards zero
    beyond = ((wide.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    narrow = torch.empty(wide.shape, dtype=torch.bfloat16)
    round_at_random(wide.clone(), narrow, generator())
    assert ((narrow.float() == below) | (narrow.float() == beyond)).all()
    assert (narrow.float() == below).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_what_bf16_holds_is_not_rounded() -> None:
    held = spread(10_000).bfloat16()
    narrow = torch.empty_like(held)
    round_at_random(held.float(), narrow, generator())
    assert torch.equal(narrow.view(torch.int16), held.view(torch.int16))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_the_mean_of_random_rounding_is_the_number(share: float) -> None:
    """A number `share` of the way from 0.02 to the next bf16 number; 5 standard errors."""
    lower = torch.tensor(0.02).bfloat16().float()
    spacing = 2.0 ** (-6 - 7)  # 0.02 lies between 2^-6 and 2^-5, where bf16 has 2^7 numbers
    count = 400_000
    wide = (lower + share * spacing).expand(count).clone()
    number = wide[0].double().item()
    narrow = torch.empty(count, dtype=torch.bfloat16)
    round_at_random(wide, narrow, generator(3))
    assert set(narrow.tolist()) == {lower.item(), lower.item() + spacing}
    error = (narrow.double().mean().item() - number) / spacing
    assert abs(error) < 5 * (share * (1 - share) / count) ** 0.5


def test_rounding_is_a_function_of_its_generator() -> None:
    rounded = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(rounded))  # whatever the global one does
        narrow = torch.empty(1000, dtype=torch.bfloat16)
        round_at_random(spread(1000), narrow, generator(seed))
        rounded.append(narrow)
    assert torch.equal(rounded[0], rounded[1])
    assert not torch.equal(rounded[0], rounded[2])
