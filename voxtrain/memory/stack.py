"""The settings of the config group `memory`: how a run fits its card. What is learnt does not depend on them.

Imports no torch: `environment()` must reach the process before CUDA starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, PositiveInt, model_validator

from voxtrain.memory.card import size_gib

SHARE_LOST = "82 to 98 %"
"""Updates of AdamW at lr 1e-5 that rounding to the nearest bf16 weight loses, at the released model's scale."""
ALLOCATOR_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The variables that configure torch's allocator: the one all versions read, and the newer name of it."""


def _card(value: Any) -> Any:
    """A card's size is MiB on the command line (`memory.card=24564`), which arrives as a number."""
    if value is None:
        return None
    size_gib(str(value))  # raises ValueError with what may be said
    return str(value)


class MemoryStack(BaseModel, frozen=True, extra="forbid"):
    """How weights, gradients, optimizer state and activations are held.

    weights: the dtype of the model's weights where they learn, and of their gradients; adapters are always fp32.
    frozen: the dtype of the model's weights under adapters. rounding: how an update reaches bf16 weights
    (optim/narrow_adamw.py). state: the bits of optimizer state, and where it lives; on the host there is an fp32 master
    of the weights beside it. gradients: where they are added up; for the host they leave the card one by one as
    backward makes them (optim/host_gradients.py). probe: whether the longest rows are tried first (memory/probe.py).
    """

    card: Annotated[str | None, BeforeValidator(_card)]
    weights: Literal["fp32", "bf16"]
    frozen: Literal["fp32", "bf16"]
    rounding: Literal["nearest", "stochastic", "kahan"]
    autocast: bool
    activation_checkpointing: bool
    state: Literal["fp32", "8bit", "paged_8bit", "host", "host_8bit"]
    gradients: Literal["card", "host"]
    expandable_segments: bool
    max_positions: PositiveInt | None
    probe: bool
    force: bool

    @model_validator(mode="after")
    def _loses_no_update(self) -> Self:
        wrong = list(_pairs_that_cannot_work(self.weights, self.rounding, self.state))
        if self.gradients == "host" and not self.on_host():
            wrong.append(
                f"memory.gradients=host with memory.state={self.state}: the update would need them back on the card; "
                "say memory.state=host_8bit with memory.rounding=nearest, or memory.gradients=card"
            )
        if wrong:
            raise ValueError("; and ".join(wrong))
        return self

    def on_host(self) -> bool:
        """Whether optimizer state lives in host memory, with an fp32 master of the weights."""
        return self.state in ("host", "host_8bit")

    def card_gib(self) -> float | None:
        """The memory of the card that the run must fit, GiB; None where there is none to fit."""
        return None if self.card is None else size_gib(self.card)

    def environment(self, already: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The variables to set before CUDA starts. What the user set already is the user's, and stays.

        Expandable segments let the allocator grow a block instead of leaving the gap behind it, which on a card
        without headroom is the difference between a run and an OOM.
        """
        if not self.expandable_segments or any(name in already for name in ALLOCATOR_NAMES):
            return {}
        return {ALLOCATOR_NAMES[0]: "expandable_segments:True"}


def _pairs_that_cannot_work(weights: str, rounding: str, state: str) -> Iterator[str]:
    """What is wrong with three settings together, each with an alternative."""
    if state in ("host", "host_8bit"):
        if rounding != "nearest":
            yield (
                f"memory.rounding={rounding} with memory.state={state}: the fp32 master on the host takes every update "
                "as it is; say memory.rounding=nearest"
            )
    elif weights == "fp32":
        if rounding != "nearest":
            yield (
                f"memory.rounding={rounding} with memory.weights=fp32: fp32 weights take every update as it is; say "
                "memory.rounding=nearest, or memory.weights=bf16"
            )
    else:
        if rounding == "nearest":
            yield (
                f"memory.weights=bf16 with memory.rounding=nearest: AdamW at lr 1e-5 rounds {SHARE_LOST} of its "
                "updates to plain bf16 weights away; say memory.rounding=stochastic (nothing more to hold), "
                "memory.rounding=kahan (2 bytes more a weight), memory.state=host (an fp32 master in host memory), or "
                "memory.weights=fp32"
            )
        if state == "paged_8bit":
            yield (
                "memory.weights=bf16 with memory.state=paged_8bit: the paged optimizer adds updates in bf16 and loses "
                "them; say memory.state=8bit, or memory.state=host to have it off the card"
            )
