"""Gradients that leave the card as soon as backward has made them, and are added up in host memory, in fp32.

Backward calls a hook for each parameter when its gradient is complete. The hook takes the gradient away, so that the
card never holds more than a few of them. What arrives is added to the parameter's sum on the host: micro-batches
accumulate there, and the global norm, the clipping and the update see the sums alone. Nothing of the rule changes; in
fp32 the sums are bit-equal to those that autograd would have made on the card.

On a GPU the way is: a second stream copies pieces into pinned host memory while backward computes on; a thread adds
each piece to its sum as soon as it is there. A hook waits where all pinned pieces are under way: so no more than
IN_FLIGHT_BYTES of gradients ever wait on the card, however far ahead of it the CPU is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES, PIECES = 32 * 2**20, 4
"""Of pinned host memory, for copies under way. At 25 GB/s a piece takes 1.3 ms: launches cost nothing beside it."""
IN_FLIGHT_BYTES = PIECES * PIECE_BYTES
"""Of gradients on the card that wait for their copy."""


class HostGradients:
    """The sums of the gradients of some parameters, in host memory, of one optimizer step."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Take over the gradients of `parameters`: their `.grad` is None after every backward pass from now on."""
        self._sums: dict[Tensor, Tensor] = {}  # of every parameter that ever had a gradient: fp32, flat
        self._there: set[Tensor] = set()  # those with a gradient in this step
        self._journey: _Journey | None = None
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._take)  # type: ignore[no-untyped-call]

    def of(self, parameter: Tensor) -> Tensor | None:
        """The sum of a parameter's gradients in this step, fp32, of its shape; None where it had none."""
        self._wait()
        return self._sums[parameter].view(parameter.shape) if parameter in self._there else None

    def clear(self) -> None:
        """Begin another step. The memory is kept for it."""
        self._wait()
        self._there.clear()

    @torch.no_grad()
    def _take(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        parameter.grad = None
        gradient = (gradient.to_dense() if gradient.is_sparse else gradient).detach().reshape(-1)
        if parameter not in self._sums:
            self._sums[parameter] = torch.empty(parameter.numel(), dtype=torch.float32)
        target, first = self._sums[parameter], parameter not in self._there
        self._there.add(parameter)
        if not gradient.is_cuda:
            _add(target, gradient, first)
            return
        if self._journey is None:
            self._journey = _Journey(gradient.device)
        self._journey.send(gradient, target, first)

    def _wait(self) -> None:
        """Until every gradient that left the card has arrived. Raises what went wrong on the way."""
        journey, self._journey = self._journey, None
        if journey is not None:
            journey.end()


def _add(target: Tensor, gradient: Tensor, first: bool) -> None:
    if first:
        target.copy_(gradient)
    else:
        target += gradient


@dataclass(frozen=True, slots=True)
class _Piece:
    arrived: torch.cuda.Event
    pinned: Tensor  # bytes of which the piece takes the first
    target: Tensor
    first: bool
    gradient: Tensor  # of the piece, on the card: it may not be freed before it has arrived


class _Journey:
    """The gradients of one step on their way from a card to the host: a stream, pinned pieces, a thread that adds."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _copying(device)
        self._free: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        for piece in _pinned():
            self._free.put(piece)
        self._sent: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._receive, name="gradients", daemon=True)
        self._thread.start()

    def send(self, gradient: Tensor, target: Tensor, first: bool) -> None:
        """Start the copy of a flat gradient; `target` takes or adds it when it has come. Waits for a free piece."""
        self._stream.wait_stream(torch.cuda.current_stream(gradient.device))
        values = PIECE_BYTES // gradient.element_size()
        for part, goal in zip(torch.split(gradient, values), torch.split(target, values), strict=True):
            pinned = self._free.get()
            with torch.cuda.stream(self._stream):
                _as(pinned, part).copy_(part, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record(self._stream)
            self._sent.put(_Piece(arrived, pinned, goal, first, part))

    def end(self) -> None:
        """Wait for the last piece. Raises what went wrong on the way."""
        self._sent.put(None)
        self._thread.join()
        if self._fault is not None:
            raise self._fault

    def _receive(self) -> None:
        while (piece := self._sent.get()) is not None:
            try:
                piece.arrived.synchronize()
                _add(piece.target, _as(piece.pinned, piece.gradient), piece.first)
            except BaseException as fault:  # told where somebody can act on it
                self._fault = fault
            self._free.put(piece.pinned)
            del piece


def _as(pinned: Tensor, part: Tensor) -> Tensor:
    """The first bytes of a pinned piece as numbers like those of `part`."""
    return pinned[: part.nbytes].view(part.dtype)


_KEPT: dict[str, Any] = {}
"""The pinned pieces and the stream of a process: to pin memory takes longer than a step's copies."""


def _pinned() -> list[Tensor]:
    if "pieces" not in _KEPT:
        _KEPT["pieces"] = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(PIECES)]
    pieces: list[Tensor] = _KEPT["pieces"]
    return pieces


def _copying(device: torch.device) -> torch.cuda.Stream:
    name = str(device)
    if name not in _KEPT:
        _KEPT[name] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream: torch.cuda.Stream = _KEPT[name]
    return stream
