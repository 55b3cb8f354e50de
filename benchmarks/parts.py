"""Which part of our step is at work, in the forward pass and in the backward pass.

Identity functions stand before and after each transformer. They say so when they are passed, in both directions: the
parts hang one behind the other, so that backward goes through them one after the other too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from voxtrain.model import loss as loss_room
from voxtrain.model.operators import Operators, operators

LMS, LOCENC, LOCDIT, BETWEEN = "language models", "LocEnc", "LocDiT", "projections, embedding, losses"


class Parts:
    """The part at work. switched: called before the part changes, with the one that ends."""

    def __init__(self, switched: Callable[[str], None] = lambda part: None) -> None:
        self.at_work, self._switched = BETWEEN, switched

    def switch(self, part: str) -> None:
        """From here on `part` is at work."""
        self._switched(self.at_work)
        self.at_work = part

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, position_losses tells where it is."""

        def marked(*arguments: Any) -> Operators:
            chosen = operators(*arguments)
            patches = self._marked(chosen.patch_states, lambda read: LOCENC if read.start == 0 else LOCDIT)
            return replace(chosen, patch_states=patches, row_states=self._marked(chosen.row_states, lambda read: LMS))

        with mock.patch.object(loss_room, "operators", marked):
            yield

    def _marked(self, states: Callable[..., Tensor], named: Callable[[Any], str]) -> Callable[..., Tensor]:
        def marked(*arguments: Any, recompute: bool) -> Tensor:
            transformer, values, *others = arguments
            part, mark = named(others[-1]), cast(Any, _Mark).apply
            result = states(transformer, mark(values, self, part, BETWEEN), *others, recompute=recompute)
            passed: Tensor = mark(result, self, BETWEEN, part)
            return passed

        return marked


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, parts: Parts, after: str, before: str) -> Tensor:
        ctx.parts, ctx.before = parts, before
        parts.switch(after)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.parts.switch(ctx.before)
        return gradient, None, None, None
