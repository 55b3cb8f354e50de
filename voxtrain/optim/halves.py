"""An fp32 weight in a bf16 one: rounded at random so that nothing is lost on average, or split in two exact halves.

A bf16 number is the upper half of an fp32 one: 8 of its 24 bits of significand. At a learning rate of 1e-5 nearly every
update of AdamW is smaller than half the distance to the next bf16 number, and rounding to nearest drops it for good.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW = 0xFFFF
"""The bits of an fp32 number that a bf16 number has not."""


def round_at_random(wide: Tensor, narrow: Tensor, generator: torch.Generator) -> None:
    """Write fp32 `wide` to bf16 `narrow`, up or down with the probabilities that make the mean exact.

    Numbers that bf16 holds stay as they are. `wide` is used up: its lower half is zero afterwards.
    """
    bits = wide.view(torch.int32)
    bits += torch.randint(0, LOW + 1, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    bits &= ~LOW
    narrow.copy_(wide)


def split(wide: Tensor, narrow: Tensor, remainder: Tensor) -> None:
    """Write fp32 `wide` to bf16 `narrow`, rounded to nearest, and what is missing to int16 `remainder`.

    The two together are `wide` to the last bit. Where two bf16 numbers are equally near, the one farther from zero is
    taken (not the even one): only then is the remainder always within 16 bits.
    """
    bits = wide.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    remainder.copy_(bits - (upper << 16))
    narrow.view(torch.int16).copy_(upper)


def join(narrow: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 numbers that `split` took apart."""
    bits = narrow.view(torch.int16).to(torch.int32) << 16
    return (bits + remainder).view(torch.float32)
