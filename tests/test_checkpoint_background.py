"""Saves beside training: what is written is what stood at the boundary, whatever the updates do meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.checkpoint import background
from voxtrain.checkpoint.background import BackgroundWriter, Job
from voxtrain.checkpoint.held import Abandoned, Held
from voxtrain.checkpoint.optimizer_tree import put_together, take_apart
from voxtrain.checkpoint.stream import lazily, write_safetensors
from voxtrain.fault import RunFailed


def tensors(count: int = 6, numel: int = 100) -> dict[str, torch.Tensor]:
    return {f"t{n}": torch.full((numel,), float(n)) for n in range(count)}


@settings(max_examples=30, deadline=None)
@given(budget=st.integers(0, 3000), readings=st.integers(1, 2), pause=st.sampled_from([0.0, 0.0005]))
def test_every_reading_sees_the_boundary_and_copies_stay_within_the_budget(
    budget: int, readings: int, pause: float
) -> None:
    live = tensors()
    held = Held(budget)
    lazy = held.hold(live, readings)
    seen: list[list[float]] = []

    def read() -> None:
        for _ in range(readings):
            for tensor in lazy.values():
                with tensor.reading() as value:
                    time.sleep(pause)
                    seen.append(value.tolist())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):  # three updates
        held.before_update()
        for value in live.values():
            value.add_(1000.0)
    reader.join()
    assert seen == [[float(n)] * 100 for n in range(6)] * readings
    assert held.most_copied_bytes <= budget
    assert held._left == budget, "copies were not let go of"


def test_an_update_waits_for_a_reading_that_looks_at_the_tensor_itself() -> None:
    live = tensors(1)
    held = Held(10**9)
    [lazy] = held.hold(live, 1).values()
    done: list[str] = []
    with lazy.reading() as value:
        update = threading.Thread(target=lambda: (held.before_update(), live["t0"].zero_(), done.append("updated")))
        live["t0"].add_(1.0)
        update.start()
        update.join(timeout=0.05)
        assert done == []
        assert value.data_ptr() == live["t0"].data_ptr(), "it was copied, so this proves nothing"
    update.join(timeout=5)
    assert done == ["updated"]
    assert held.stalled_s > 0.04


def test_a_writer_that_fails_lets_the_update_go_on(tmp_path: Path) -> None:
    held, writer = Held(0), BackgroundWriter(tmp_path)
    held.hold(tensors(), 1)

    def fail() -> None:
        raise PermissionError(13, "permission denied")

    writer.start([Job("checkpoint 4", 0, fail)], held)
    writer.before_update()
    with pytest.raises(RunFailed, match=r"checkpoint 4 could not be written.*permission denied"):
        writer.settle()
    assert writer.settle() == [], "a failure is told once"


def test_an_abandoned_save_ends_soon_and_says_nothing(tmp_path: Path) -> None:
    held, writer, begun = Held(0), BackgroundWriter(tmp_path), threading.Event()
    lazy = held.hold(tensors(), 1)
    read: list[str] = []

    def write() -> None:
        for name, tensor in lazy.items():
            with tensor.reading():
                read.append(name)
                begun.set()
                time.sleep(0.02)

    writer.start([Job("checkpoint 4", 0, write)], held)
    begun.wait()
    writer.abandon()
    assert len(read) < 6
    with pytest.raises(Abandoned), next(iter(lazy.values())).reading():
        pass


def test_jobs_that_do_not_fit_are_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "free_bytes", lambda _: background.RESERVE_BYTES + 100)
    written: list[str] = []
    jobs = [Job(f"checkpoint {n}", n, lambda n=n: written.append(n)) for n in (100, 101)]
    low = BackgroundWriter(tmp_path).write_now(jobs)
    assert written == [100]
    assert [job.what for job in low] == ["checkpoint 101"]
    assert "the disk is low: checkpoint 101 needs" in str(low[0])


def test_a_file_written_beside_updates_is_the_file_written_at_rest(tmp_path: Path) -> None:
    live = {f"layer.{n}": torch.randn(700, 300, generator=torch.Generator().manual_seed(n)) for n in range(20)}
    at_rest = write_safetensors(tmp_path / "at_rest", lazily(live, torch.bfloat16))
    held, writer = Held(3 * 700 * 300 * 4), BackgroundWriter(tmp_path)
    lazy = lazily(held.hold(live, 1), torch.bfloat16)
    writer.start([Job("x", 0, lambda: write_safetensors(tmp_path / "beside", lazy))], held)
    updates = 0
    while writer.busy or not updates:
        writer.before_update()
        for value in live.values():
            value.mul_(-1.5)
        updates += 1
    writer.settle()
    assert (tmp_path / "beside").read_bytes() == (tmp_path / "at_rest").read_bytes()
    assert len(at_rest) == 64


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=NESTED)
def test_a_nest_of_plain_values_survives_json(value: object) -> None:
    import json

    plain, found = take_apart(value)
    assert found == {}
    assert put_together(json.loads(json.dumps(plain)), lambda _: torch.zeros(0)) == value


def test_tensors_come_back_where_they_were() -> None:
    value = {"state": {0: {"a": torch.ones(2), "step": 3}, 1: {"a": torch.zeros(1)}}, "groups": [{"betas": (0.9, 0.1)}]}
    plain, found = take_apart(value)
    assert sorted(found) == ["state.0.a", "state.1.a"]
    again = put_together(plain, found.__getitem__)
    assert again["groups"] == [{"betas": (0.9, 0.1)}]
    assert torch.equal(again["state"][0]["a"], torch.ones(2))
    with pytest.raises(TypeError, match="set, which cannot be saved"):
        take_apart({"x": {1, 2}})
    with pytest.raises(ValueError, match="no kind"):
        put_together({"pickle": "x"}, found.__getitem__)
