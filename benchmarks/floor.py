"""The arithmetic floor of a step: its matrix products, each as fast as this machine makes them by themselves.

The products are recorded as a step makes them with plain operators, forward and backward. Each shape is made in the
step's dtype with the same threads, with its operands at hand and in the faster layout: by torch's own product or, on a
CPU, by oneDNN's. All products of a step make one round; rounds alternate with the steps that they are compared with,
median with median, since a machine that is rented may be slower by a third in one minute than in the next. What
else a step does (attention's softmax, norms, activations, the update) is left out: the floor is what no arrangement of
it could beat.

A second floor reads one operand of each product from memory. A step has to: a weight was last used a whole model
before, and what a weight's gradient is made of was saved as long ago. The other operand stays at hand, as an activation
or a gradient just made would.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from voxtrain.model.cpu import products

Product = tuple[str, int, int, int, int]
"""(part of the step, batch, n, k, m): batch times [n, k] x [k, m]."""
Way = Callable[[Tensor], Tensor]
"""Makes a product of one shape; its right operand is given as a flat tensor."""
REPEATS = 5
FAR_BYTES = 2**28
"""Numbers in which right operands follow one another: far more than a processor's caches hold."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products while it is active. part: names the part of the step that is at work."""

    def __init__(self, part: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._part = part
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at every operator that runs."""
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self._add(args[0], args[1])
        elif name in ("addmm", "baddbmm"):
            self._add(args[1], args[2])
        elif name.startswith("_scaled_dot_product"):
            self._add_attention(args, backward=name.endswith("backward"))
        return func(*args, **(kwargs or {}))

    def _add(self, left: Tensor, right: Tensor) -> None:
        batch = left.shape[0] if left.dim() == 3 else 1
        self.products[(self._part(), batch, left.shape[-2], left.shape[-1], right.shape[-1])] += 1

    def _add_attention(self, args: Any, *, backward: bool) -> None:
        """Scores and their sums over values; backward twice as much, and the scores once more."""
        q, k = args[1:3] if backward else args[:2]
        batch, rows, keys = q.shape[0] * q.shape[1], q.shape[2], k.shape[2]
        self.products[(self._part(), batch, rows, q.shape[3], keys)] += 5 if backward else 2


@dataclass(frozen=True)
class Floor:
    """Seconds of all products by themselves, and their work."""

    seconds: dict[str, float]  # by part
    flop: dict[str, float]  # by part

    @property
    def total_s(self) -> float:
        """Of the whole step."""
        return sum(self.seconds.values())

    @property
    def total_flop(self) -> float:
        """Of the whole step."""
        return sum(self.flop.values())


class Products:
    """The products of a step and nothing else, in rounds that take turns with the loops: a slow minute hits both."""

    def __init__(self, products: Counter[Product], device: torch.device, autocast: bool) -> None:
        """Find for each shape the way that makes it fastest here; what is made of it stays for all rounds."""
        self._products = products
        dtype = torch.bfloat16 if autocast else torch.float32
        shapes = {(n, k, m) for _, batch, n, k, m in products if batch == 1}
        largest = max(k * m for _, k, m in shapes)
        self._right = torch.randn(max(FAR_BYTES // dtype.itemsize, 2 * largest), device=device, dtype=dtype)
        self._ways = {shape: _fastest(shape, self._right) for shape in sorted(shapes)}
        self._rounds: list[dict[tuple[int, int, int], float]] = []
        self._far_rounds: list[dict[tuple[int, int, int], float]] = []

    def step(self) -> None:
        """Make every product of one step as often as a step does."""
        times: Counter[tuple[int, int, int]] = Counter()
        for (_, batch, *shape), count in self._products.items():
            if batch == 1:
                n, k, m = shape
                times[n, k, m] += count
        for rounds, far in ((self._rounds, False), (self._far_rounds, True)):
            rounds.append(
                {shape: _seconds(self._ways[shape], shape, self._right, many, far) for shape, many in times.items()}
            )

    def floor(self) -> Floor:
        """Of the round whose seconds are the median; products of attention count at the rate of the others together."""
        return self._median(self._rounds)

    def floor_from_memory(self) -> Floor:
        """The same, with the right operand of each product read from memory."""
        return self._median(self._far_rounds)

    def forget(self) -> None:
        """Leave the rounds out that were made so far."""
        self._rounds.clear()
        self._far_rounds.clear()

    def _median(self, rounds: list[dict[tuple[int, int, int], float]]) -> Floor:
        found = sorted((self._of(one) for one in rounds), key=lambda floor: floor.total_s)
        return found[(len(found) - 1) // 2]

    def _of(self, best: dict[tuple[int, int, int], float]) -> Floor:
        seconds: defaultdict[str, float] = defaultdict(float)
        flop: defaultdict[str, float] = defaultdict(float)
        small: defaultdict[str, float] = defaultdict(float)
        for (part, batch, n, k, m), times in self._products.items():
            work = 2.0 * batch * n * k * m * times
            flop[part] += work
            if batch > 1:
                small[part] += work
            else:
                seconds[part] += times * best[n, k, m]
        rate = (sum(flop.values()) - sum(small.values())) / sum(seconds.values())
        for part, work in small.items():
            seconds[part] += work / rate
        return Floor(dict(seconds), dict(flop))


def _fastest(shape: tuple[int, int, int], right: Tensor) -> Way:
    n, k, m = shape
    left = torch.randn(n, k, device=right.device, dtype=right.dtype)
    turned = torch.randn(k, n, device=right.device, dtype=right.dtype).t()  # as gradients of weights have it
    ways: list[Way] = [lambda flat: left @ flat.view(k, m), lambda flat: turned @ flat.view(k, m)]
    if right.device.type == "cpu" and products.available():
        ways.append(lambda flat: products.product(left, flat.view(k, m).t()))
        ways.append(lambda flat: products.product(left, flat.view(m, k)))
        ways.append(lambda flat: products.product(flat.view(m, k), left))  # the result as a step in columns has it
        ways.append(lambda flat: products.product(flat.view(m, k), turned))
    return min(ways, key=lambda way: _best_s(lambda: _seconds(way, shape, right, 1, far=False)))


def _best_s(measured: Callable[[], float]) -> float:
    measured()
    return min(measured() for _ in range(REPEATS))


def _seconds(way: Way, shape: tuple[int, int, int], right: Tensor, times: int, far: bool) -> float:
    """Of one call, where there are many, one after the other. far: each takes the numbers after those of the last."""
    size = shape[1] * shape[2]
    places = min(times, right.numel() // size) if far else 1
    operands = [right[place * size : (place + 1) * size] for place in range(places)]
    _wait(right.device)
    began = time.perf_counter()
    for call in range(times):
        way(operands[call % places])
    _wait(right.device)
    return (time.perf_counter() - began) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device) -> float:
    """Bytes that this machine reads and writes a second, in a copy that no cache holds."""
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)

    def copied_s() -> float:
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        return time.perf_counter() - began

    return 2 * 4 * source.numel() / _best_s(copied_s)
