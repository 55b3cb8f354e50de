"""The settings of the config group `memory`: how a run fits its card. What is learnt does not depend on them.

Imports no torch: `environment()` must reach the process before CUDA starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, PositiveInt

from voxtrain.memory.card import size_gib

ALLOCATOR_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The variables that configure torch's allocator: the one all versions read, and the newer name of it."""


def _card(value: Any) -> Any:
    """A card's size is MiB on the command line (`memory.card=24564`), which arrives as a number."""
    if value is None:
        return None
    size_gib(str(value))  # raises ValueError with what may be said
    return str(value)


def _weights(value: Any) -> Any:
    """Say why plain bf16 weights are refused, where a bare list of choices would not."""
    if value == "bf16":
        raise ValueError(
            "AdamW at lr 1e-5 rounds 82 to 98 % of its updates to plain bf16 weights away: say fp32 "
            "(and memory.state=paged_8bit where memory is short)"
        )
    return value


class MemoryStack(BaseModel, frozen=True, extra="forbid"):
    """How weights, gradients, optimizer state and activations are held."""

    card: Annotated[str | None, BeforeValidator(_card)]
    weights: Annotated[Literal["fp32"], BeforeValidator(_weights)]
    autocast: bool
    activation_checkpointing: bool
    state: Literal["fp32", "8bit", "paged_8bit"]
    expandable_segments: bool
    max_positions: PositiveInt | None
    force: bool

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
