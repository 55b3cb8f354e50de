"""AdamW by row: what torch's AdamW does on the whole tensor, whichever rows a step used, and after a resume too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from voxtrain.optim.norm import by_row, clip, clip_divisor, gradient_norm
from voxtrain.optim.row_adamw import RowAdamW

ROWS, WIDTH = 12, 5
RULE = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}
# weights of order one after a few updates of 0.01, each rounded some times in another order than torch's
ROUNDING = {"rtol": 0, "atol": 1e-6}


def start() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    table, dense = torch.randn(ROWS, WIDTH, generator=generator), torch.randn(WIDTH, generator=generator)
    return torch.nn.Parameter(table), torch.nn.Parameter(dense)


def backward(table: Tensor, dense: Tensor, tokens: Sequence[int], sparse: bool) -> None:
    table.grad = dense.grad = None
    words = F.embedding(torch.tensor(tokens, dtype=torch.int64), table, sparse=sparse)
    (words * dense).square().sum().backward()
    if sparse:
        table.grad = by_row(table.grad)


def train(steps: Sequence[Sequence[int]], build: Callable[..., torch.optim.Optimizer], sparse: bool) -> tuple:
    table, dense = start()
    optimizer = build([table, dense], **RULE)
    for tokens in steps:
        backward(table, dense, tokens, sparse)
        optimizer.step()
    return table, dense, optimizer


STEPS = st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=6), min_size=1, max_size=5)


@given(STEPS)
@settings(max_examples=25, deadline=None)
def test_it_is_torchs_adamw_whatever_rows_are_used(steps: list[list[int]]) -> None:
    expected, found = train(steps, torch.optim.AdamW, False), train(steps, RowAdamW, True)
    for whole, row in zip(expected[:2], found[:2], strict=True):
        torch.testing.assert_close(row, whole, **ROUNDING)
    for parameter, other in zip(expected[:2], found[:2], strict=True):
        one, two = expected[2].state[parameter], found[2].state[other]
        assert one.keys() == two.keys()
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-7)


def test_a_resumed_run_is_bit_equal() -> None:
    steps = [[1, 2, 2], [2, 7], [0], [7, 9, 1], [3, 3]]
    whole = train(steps, RowAdamW, True)
    table, dense, optimizer = train(steps[:2], RowAdamW, True)
    held = copy.deepcopy(optimizer.state_dict())
    table, dense = (torch.nn.Parameter(weights.detach().clone()) for weights in (table, dense))
    resumed = RowAdamW([table, dense], **RULE)
    resumed.load_state_dict(held)
    for tokens in steps[2:]:
        backward(table, dense, tokens, sparse=True)
        resumed.step()
    assert torch.equal(table, whole[0])
    assert torch.equal(dense, whole[1])


def test_a_row_that_was_never_used_only_decays() -> None:
    table, _, optimizer = train([[1, 2], [2]], RowAdamW, True)
    rest = [row for row in range(ROWS) if row not in (1, 2)]
    expected = start()[0].detach()[rest]
    for _ in range(2):
        expected = expected * (1 - RULE["lr"] * RULE["weight_decay"])
    assert torch.equal(table.detach()[rest], expected)
    assert not optimizer.state[table]["exp_avg"][rest].any()


def test_norm_and_clipping_count_each_row_once() -> None:
    (table, dense), (other, same) = start(), start()
    backward(table, dense, [3, 3, 5], sparse=True)
    backward(other, same, [3, 3, 5], sparse=False)
    norm, expected = gradient_norm([table.grad, dense.grad]), torch.nn.utils.clip_grad_norm_([other, same], 0.5)
    torch.testing.assert_close(norm, expected)
    assert norm > 0.5
    clip([table.grad, dense.grad], 0.5, norm)
    torch.testing.assert_close(table.grad.to_dense(), other.grad)
    torch.testing.assert_close(dense.grad, same.grad)
    held = dense.grad.clone()
    clip([table.grad, dense.grad], 1e9, norm)
    assert torch.equal(dense.grad, held)


def test_clipping_inside_the_update_is_clipping_before_it() -> None:
    """Once: the step after it takes its gradients as they are."""
    (table, dense), (other, same) = start(), start()
    found, expected = RowAdamW([table, dense], **RULE), RowAdamW([other, same], **RULE)
    for limit in (0.5, 1e9):
        for pair in ((table, dense), (other, same)):
            backward(*pair, [3, 3, 5], sparse=True)
        gradients = [other.grad, same.grad]
        norm = gradient_norm(gradients)
        found.clip_next(clip_divisor(limit, norm))
        clip(gradients, limit, norm)
        found.step()
        expected.step()
        assert (norm > limit) == (limit == 0.5)
        torch.testing.assert_close(table, other, **ROUNDING)
        torch.testing.assert_close(dense, same, **ROUNDING)
        for one, two in ((table, other), (dense, same)):
            torch.testing.assert_close(
                found.state[one]["exp_avg"], expected.state[two]["exp_avg"], rtol=1e-5, atol=1e-7
            )
    backward(table, dense, [3], sparse=True)
    backward(other, same, [3], sparse=True)
    found.step()
    expected.step()
    torch.testing.assert_close(dense, same, **ROUNDING)
