"""The memory stack's settings: cards, refusals with a way out, and the allocator's variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from voxtrain.fault import InputError
from voxtrain.memory.card import MIB_OF_CARD, size_gib
from voxtrain.memory.stack import MemoryStack
from voxtrain.settings import compose

CONF = Path(__file__).parents[1] / "conf" / "memory"


def option(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert values.pop("_target_") == "voxtrain.memory.stack.MemoryStack"
    return values


def stack(**changes: Any) -> MemoryStack:
    return MemoryStack.model_validate({**option("24gb"), **changes})


@pytest.mark.parametrize(
    ("said", "gib"),
    [
        ("24gb", 24.0),
        ("16GiB", 16.0),
        ("80 gb", 80.0),
        ("3090", 24564 / 1024),
        ("RTX 4090", 24564 / 1024),
        ("NVIDIA GeForce RTX 3090 Ti", 24564 / 1024),
        ("a10", 23028 / 1024),
        ("L4", 23028 / 1024),
        ("24564", 24564 / 1024),
        ("24564 MiB", 24564 / 1024),
        ("10.5gb", 10.5),
    ],
)
def test_cards(said: str, gib: float) -> None:
    assert size_gib(said) == gib
    assert stack(card=said).card_gib() == gib


@pytest.mark.parametrize("said", ["", "big", "0gb", "-24gb", "24tb", "512", "gb"])
def test_what_is_no_card_is_refused_with_what_may_be_said(said: str) -> None:
    with pytest.raises(ValueError, match="24gb"):
        size_gib(said)
    with pytest.raises(ValidationError, match="3090"):
        stack(card=said)


def test_mib_arrives_as_a_number_from_the_command_line() -> None:
    assert stack(card=24564).card_gib() == 24564 / 1024
    assert stack(card=3090).card_gib() == MIB_OF_CARD["3090"] / 1024
    assert stack(card=None).card_gib() is None


def test_every_option_of_the_group_is_a_stack_that_its_name_says() -> None:
    names = sorted(path.stem for path in CONF.glob("*.yaml"))
    assert {"16gb", "24gb", "80gb", "cpu"} <= set(names)
    for name in names:
        found = MemoryStack.model_validate(option(name))
        assert found.card == (None if name == "cpu" else name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weights": "bf16"}, "rounds 82 to 98 %"),
        ({"weights": "bf16", "state": "8bit"}, r"rounding=stochastic \(nothing more.*rounding=kahan.*state=host"),
        ({"weights": "bf16", "rounding": "kahan"}, "memory.state=paged_8bit: .* say memory.state=8bit"),
        ({"rounding": "kahan"}, "weights=fp32: .* say memory.rounding=nearest"),
        ({"rounding": "stochastic", "state": "host"}, "every update as it is; say memory.rounding=nearest"),
        ({"weights": "fp16"}, "fp32"),
        ({"state": "paged8bit"}, "paged_8bit"),
        ({"max_positions": 0}, "greater than 0"),
        ({"offload": True}, "not permitted"),
    ],
)
def test_what_cannot_work_is_refused_with_an_alternative(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        stack(**change)


def test_every_wrong_pair_is_told_at_once() -> None:
    with pytest.raises(
        ValidationError, match=r"rounds 82 to 98 %.*; and memory\.weights=bf16 with memory\.state=paged"
    ):
        stack(weights="bf16")


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "bf16", "rounding": "stochastic", "state": "8bit"},
        {"weights": "bf16", "rounding": "stochastic", "state": "fp32"},
        {"weights": "bf16", "rounding": "kahan", "state": "8bit"},
        {"weights": "bf16", "state": "host"},
        {"weights": "bf16", "state": "host_8bit"},
        {"weights": "fp32", "state": "host"},
        {"frozen": "fp32"},
    ],
)
def test_pairs_that_work(change: dict[str, Any]) -> None:
    found = stack(**change)
    assert found.on_host() == found.state.startswith("host")


def test_expandable_segments_unless_the_user_said_something() -> None:
    wanted = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert stack().environment({}) == wanted
    assert stack().environment({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}) == {}
    assert stack().environment({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}) == {}
    assert stack(expandable_segments=False).environment({}) == {}


@pytest.mark.slow
def test_the_plan_and_the_settings_load_no_torch() -> None:
    rooms = [
        "checkpoint.plan", "checkpoint.changes", "checkpoint.folders", "checkpoint.retention",
        "memory.stack", "memory.card", "memory.widths", "memory.plan", "memory.disk", "memory.longest",
        "memory.remedies",
    ]  # fmt: skip
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module('voxtrain.' + name)\n"
    code += "assert 'torch' not in sys.modules and 'voxtrain.settings' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *rooms], check=True, env=os.environ)


def test_adapters_on_a_bf16_base_need_autocast() -> None:
    given = ["+recipe=lora_24gb", "data.manifest=rows.jsonl", "memory.autocast=false"]
    with pytest.raises(InputError, match=r"memory\.frozen=fp32"):
        compose(given)
    assert compose([*given, "memory.frozen=fp32"]).memory.frozen == "fp32"
