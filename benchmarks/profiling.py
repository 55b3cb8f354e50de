"""Where the time of our step goes: by part of the model beside its arithmetic floor, and by kind of work."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from benchmarks.clock import Clock
from benchmarks.contenders import Contenders
from benchmarks.floor import Product, Recorder
from benchmarks.our_loop import OurLoop
from benchmarks.parts import BETWEEN, Parts
from voxtrain.model.cpu import attention, columns, feed_forward, products
from voxtrain.model.cpu.kernel import Kernel, run

DATA, NORM, UPDATE = "data: latents, draws, packing", "gradient norm", "clipping and update (AdamW)"
PRODUCTS, ACTIVATIONS = "matrix products", "activations (SwiGLU)"
ATTENTION = "attention, with the rotary embedding on a CPU"
KINDS = {
    PRODUCTS: ("mm", "addmm", "_linear_pointwise"),
    ATTENTION: ("kernel attention", "_scaled_dot_product", "bmm", "_softmax"),
    "norms": ("kernel norm", "rsqrt", "pow"),
    ACTIVATIONS: ("kernel gate", "silu", "SiluBackward"),
    "weights turned for a product": ("kernel turned",),
    "embedding": ("embedding", "index_select", "index_copy", "index_add"),
    NORM: (NORM,),
    UPDATE: (UPDATE,),
    DATA: (DATA,),
}
OTHER = "other: adding, copying, making room"
STEPS = 3
"""Steps of which the table by part shows the fastest."""


def recorded_products(loop: OurLoop) -> Counter[Product]:
    """The matrix products of one step by part; `loop` should compute with plain operators."""
    parts = Parts()
    with parts.watched(), Recorder(lambda: parts.at_work) as recorder:
        loop.step()
    return Counter(recorder.products)


def seconds_by_part(loop: OurLoop, clock: Clock, steps: int) -> dict[str, float]:
    """Seconds of one step by part, forward and backward together, the best of some steps."""
    found = []
    for _ in range(steps):
        seconds: defaultdict[str, float] = defaultdict(float)
        with clock.told(seconds) as split:
            parts = Parts(split)
            with parts.watched(), _told_apart(loop, parts):
                loop.step()
                split(parts.at_work)
        found.append(dict(seconds))
    return min(found, key=lambda seconds: sum(seconds.values()))


@contextmanager
def _told_apart(loop: OurLoop, parts: Parts) -> Iterator[None]:
    """Inside, what stands around forward and backward are parts too."""

    def around(part: str, then: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            parts.switch(part)
            result = function(*arguments)
            parts.switch(then)
            return result

        return called

    parts.at_work = DATA
    loop.after_data = lambda: parts.switch(BETWEEN)
    with (
        mock.patch.object(loop.module, "_gradient_norm", around(NORM, BETWEEN, loop.module._gradient_norm)),
        mock.patch.object(loop.optimizer, "step", around(UPDATE, BETWEEN, loop.optimizer.step)),
    ):
        yield
    loop.after_data = lambda: None


def seconds_by_kind(loop: OurLoop, clock: Clock) -> dict[str, float]:
    """Seconds of one step by kind of work, as torch's profiler saw them: of the processor, or of the GPU."""
    on_gpu = clock.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiler, _ranges(loop):
        loop.step()
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in profiler.events():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[_kind(event)] += spent / 1e6
    return dict(seconds)


@contextmanager
def _ranges(loop: OurLoop) -> Iterator[None]:
    def ranged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            with record_function(name):
                return function(*arguments)

        return called

    def kernel_run(kernel: Kernel, *arguments: Any) -> None:
        with record_function(f"kernel {kernel.name}"):
            run(kernel, *arguments)

    with (
        mock.patch.object(columns, "run", kernel_run),
        mock.patch.object(attention, "run", kernel_run),
        mock.patch.object(products, "run", kernel_run),
        mock.patch.object(feed_forward, "run", kernel_run),
        mock.patch.object(loop.module, "_gradient_norm", ranged(NORM, loop.module._gradient_norm)),
        mock.patch.object(loop.optimizer, "step", ranged(UPDATE, loop.optimizer.step)),
        mock.patch.object(loop, "_batch", ranged(DATA, loop._batch)),
    ):
        yield


def _kind(event: Any) -> str:
    """The kind of the outermost range or operator that has one."""
    found = OTHER
    while event is not None:
        bare = str(event.name).removeprefix("autograd::engine::evaluate_function: ").split("::")[-1]
        found = next((kind for kind, names in KINDS.items() if bare.startswith(names)), found)
        event = event.cpu_parent
    return found


def print_profile(all_of_them: Contenders, clock: Clock) -> None:
    """Both tables of our step."""
    floor = all_of_them.floor
    assert floor is not None, "the floor is measured first"
    print(f"{'our step by part':44} {'seconds':>7} {'share':>6} {'floor':>7} {'achieved':>8}")
    seconds = seconds_by_part(all_of_them.best, clock, STEPS)
    whole = sum(seconds.values())
    for part, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        least = floor.seconds.get(part, 0.0)
        of_floor = f"{least:7.3f} {least / spent:8.0%}" if least else ""
        print(f"{part:44} {spent:7.3f} {spent / whole:6.1%} {of_floor}")
    print(f"{'together':44} {whole:7.3f} {1:6.1%} {floor.total_s:7.3f} {floor.total_s / whole:8.0%}\n")
    print(f"{'our step by kind of work':44} {'seconds':>7} {'share':>6}")
    kinds = seconds_by_kind(all_of_them.best, clock)
    for kind, spent in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"{kind:44} {spent:7.3f} {spent / sum(kinds.values()):6.1%}")
    print()
