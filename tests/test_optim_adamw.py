"""AdamW with its state in 32 or 8 bits."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from pydantic import ValidationError

from voxtrain.fault import InputError
from voxtrain.optim.adamw import AdamW

RULE = AdamW(lr=1e-2, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1)


def stepped(optimizer_of: object, steps: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(128, 64, generator=generator))
    optimizer = optimizer_of([weight])
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weight.detach()


def test_fp32_state_is_torchs_adamw() -> None:
    expected = stepped(lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1))
    found = stepped(lambda p: RULE.build(p, "fp32", "nearest", 0, "card"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # in one pass, which rounds in another order


@pytest.mark.slow
@pytest.mark.parametrize(("state", "name"), [("8bit", "AdamW8bit"), ("paged_8bit", "PagedAdamW8bit")])
def test_8bit_state_is_bitsandbytes_and_near(state: str, name: str) -> None:
    built: list[torch.optim.Optimizer] = []

    def build(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        built.append(RULE.build(iter(parameters), state, "nearest", 0, "card"))
        return built[0]

    found, expected = stepped(build), stepped(lambda p: RULE.build(p, "fp32", "nearest", 0, "card"))
    assert type(built[0]).__name__ == name
    (kept,) = built[0].state.values()
    assert kept["state1"].dtype == kept["state2"].dtype == torch.uint8
    start = stepped(lambda p: RULE.build(p, "fp32", "nearest", 0, "card"), steps=0)
    moved, apart = (expected - start).norm(), (found - expected).norm()
    assert 0 < apart < 0.05 * moved  # 8-bit state rounds each moment to about two digits


@pytest.mark.slow
def test_nothing_is_said() -> None:
    code = (
        "import torch; from voxtrain.optim.adamw import AdamW;"
        "p = torch.nn.Parameter(torch.ones(128, 64));"
        "rule = AdamW(lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0);"
        "o = rule.build([p], 'paged_8bit', 'nearest', 0, 'card');"
        "p.grad = torch.ones_like(p); o.step()"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("", "")


def test_state_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="4bit"):
        RULE.build([torch.nn.Parameter(torch.ones(1))], "4bit", "nearest", 0, "card")


def test_missing_bitsandbytes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # nothing of it is half imported, whichever test is first
    with warnings.catch_warnings(), pytest.raises(InputError, match=r"memory\.state = paged_8bit"):
        RULE.build([torch.nn.Parameter(torch.ones(1))], "paged_8bit", "nearest", 0, "card")


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"betas": (0.9, 1.0)},
        {"betas": (0.9,)},
        {"eps": 0.0},
        {"weight_decay": -1.0},
        {"x": 1},
    ],
)
def test_settings_out_of_range_are_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        AdamW.model_validate({**RULE.model_dump(), **change})
