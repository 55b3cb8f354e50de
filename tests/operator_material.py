"""What tests of the operators compare with: parts of upstream's layers, random numbers, and who hears whom."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from voxtrain.model.cpu.attention import Angles, Stretches
from voxtrain.model.layers import Rows

ROUNDING = {"rtol": 1e-5, "atol": 2e-6}  # float32 sums of about a hundred terms of order one, in another order
HEADS, GROUPS, CHANNELS = 6, 2, 10


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


def agree(plain: Callable[..., Tensor], fast: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Both functions of the inputs give the same result, and the same gradients of its weighted sum."""
    found = []
    for function in (plain, fast):
        result = function(*inputs)
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(3))
        found.append([result, *torch.autograd.grad((result * weights).sum(), inputs)])
    for slow, quick in zip(*found, strict=True):
        torch.testing.assert_close(quick.to_dense(), slow.to_dense(), **ROUNDING)


class Doubled(nn.Linear):
    def forward(self, values: Tensor) -> Tensor:
        return 2 * super().forward(values)


class Norm(nn.Module):
    """minicpm4/model.py: rms_layernorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.linspace(0.5, 2, width)), 1e-5

    def forward(self, values: Tensor) -> Tensor:
        return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


def angles_of(tokens: Tensor) -> Angles:
    angles = tokens.unsqueeze(1) * torch.tensor([1.0, 0.3, 0.1, 0.03, 0.01])
    return Angles(angles.cos(), angles.sin())


def repeated(angles: Angles) -> tuple[Tensor, Tensor]:
    """As upstream has them: their second half repeats the first."""
    return torch.cat((angles.cosine, angles.cosine), dim=1), torch.cat((angles.sine, angles.sine), dim=1)


def rows_of(*lengths: int) -> Rows:
    position = torch.cat([torch.arange(length) for length in lengths])
    start = torch.repeat_interleave(torch.arange(len(lengths)) * max(lengths), torch.tensor(lengths))
    return Rows(lengths, position, start + position)


def stretches(rows: Rows, asking: Tensor) -> Stretches:
    ends, angles = torch.tensor((0, *rows.lengths)).cumsum(0), angles_of(rows.position)
    hears = rows.position[asking] + 1
    return Stretches(torch.searchsorted(asking, ends), ends, hears, max(rows.lengths), angles, angles.at(asking))
