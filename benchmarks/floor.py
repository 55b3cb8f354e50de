"""The arithmetic floor of a step: its matrix products, each as fast as this machine makes them by themselves.

The products are recorded as a step makes them with plain operators, forward and backward, and measured one by one in
fp32 with the same threads: by torch's own product and, on a CPU, by oneDNN's; the faster counts. What else a step does
(attention's softmax, norms, activations, the update) is left out: the floor is what no arrangement of it could beat.
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

from voxtrain.model import cpu_operators

Product = tuple[str, int, int, int, int]
"""(part of the step, batch, n, k, m): batch times [n, k] x [k, m]."""
REPEATS = 5


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


def measured_floor(products: Counter[Product], device: torch.device, autocast: bool) -> Floor:
    """Measure each shape once; products of attention count at the rate of the others together."""
    dtype = torch.bfloat16 if autocast else torch.float32
    seconds: defaultdict[str, float] = defaultdict(float)
    flop: defaultdict[str, float] = defaultdict(float)
    small: defaultdict[str, float] = defaultdict(float)
    best: dict[tuple[int, int, int], float] = {}
    for (part, batch, n, k, m), times in products.items():
        work = 2.0 * batch * n * k * m * times
        flop[part] += work
        if batch > 1:
            small[part] += work
            continue
        if (n, k, m) not in best:
            best[n, k, m] = _product_s(n, k, m, device, dtype)
        seconds[part] += times * best[n, k, m]
    rate = (sum(flop.values()) - sum(small.values())) / sum(seconds.values())
    for part, work in small.items():
        seconds[part] += work / rate
    return Floor(dict(seconds), dict(flop))


def _product_s(n: int, k: int, m: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = torch.randn(n, k, device=device, dtype=dtype), torch.randn(k, m, device=device, dtype=dtype)
    ways: list[Callable[[], Tensor]] = [lambda: left @ right]
    if device.type == "cpu" and cpu_operators.available():
        ways.append(lambda: cpu_operators.product(left, right.t()))
    return min(_best_s(way, device) for way in ways)


def _best_s(way: Callable[[], Tensor], device: torch.device) -> float:
    way()
    found = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return min(found)


def copy_rate(device: torch.device) -> float:
    """Bytes that this machine reads and writes a second, in a copy that no cache holds."""
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _best_s(lambda: target.copy_(source), device)
