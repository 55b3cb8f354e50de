"""Saving while training: cadence, signals, requests, a low disk, and going on from each of them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learner import Learner, checkpoint_plan, fit

from voxtrain.checkpoint import background, callback
from voxtrain.checkpoint.callback import SaveCheckpoints
from voxtrain.checkpoint.facts import read_facts
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.fault import RunFailed
from voxtrain.run_folder import RunFolder

TOTAL = 10
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "audiovae.pth").write_bytes(b"vae")
    return folder


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    with StopRequest() as request:
        yield request


@pytest.fixture(params=[False, True], ids=["now", "beside"])
def save(
    request: pytest.FixtureRequest, run: RunFolder, base: Path, stop: StopRequest
) -> Callable[..., SaveCheckpoints]:
    def make(
        *, resumes: bool = False, every: int = 4, state_every: int = 3, low_disk: str = "stop", early: Any = ()
    ) -> SaveCheckpoints:
        plan = checkpoint_plan(
            every=every, state_every=state_every, background=request.param, low_disk=low_disk, early=early
        )
        return SaveCheckpoints(run, plan, TOTAL, base, None, {"seed": 1}, stop, resumes, {"torch": "2"})

    return make


def whole_run() -> Learner:
    module = Learner(TOTAL)
    fit(module)
    assert module.steps_done == TOTAL
    return module


def assert_equal_to_the_whole(module: Learner, losses: list[float]) -> None:
    whole = whole_run()
    assert losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), whole.parameters(), strict=True))


def test_step_zero_the_multiples_and_the_last_each_once(
    run: RunFolder, save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, list[int]] = {"checkpoint": [], "state": []}
    write_checkpoint, write_snapshot = callback.write_checkpoint, callback.write_snapshot
    monkeypatch.setattr(
        callback, "write_checkpoint", lambda *a: calls["checkpoint"].append(a[1]) or write_checkpoint(*a)
    )
    monkeypatch.setattr(callback, "write_snapshot", lambda *a: calls["state"].append(a[1].step) or write_snapshot(*a))
    saver = save()
    fit(Learner(TOTAL), saver)
    assert calls == {"checkpoint": [0, 4, 8, 10], "state": [0, 3, 6, 9, 10]}
    assert run.checkpoint_steps() == [0, 4, 8, 10]
    assert run.state_steps() == [10]
    assert (run.checkpoints / "latest").resolve() == run.checkpoint(10)
    assert saver.stopped is None
    assert read_facts(run).rows_seen == 80


def test_step_n_holds_n_updates(run: RunFolder, save: Any) -> None:
    from safetensors.torch import load_file

    fit(Learner(TOTAL), save())
    four = Learner(4)
    fit(four)
    saved = load_file(run.checkpoint(4) / "model.safetensors")
    assert torch.equal(saved["layer.weight"], four.layer.weight)
    assert torch.equal(load_file(run.checkpoint(0) / "model.safetensors")["layer.weight"], Learner(1).layer.weight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_at_the_step_boundary_and_the_run_goes_on_bit_for_bit(
    run: RunFolder, save: Any, number: signal.Signals
) -> None:
    module = Learner(TOTAL)
    module.at_step = lambda step: os.kill(os.getpid(), number) if step == 5 else None
    saver = save()
    fit(module, saver)
    assert module.steps_done == 5
    assert saver.stopped is not None
    assert number.name in saver.stopped
    assert "state of step 5" in saver.stopped
    assert run.state_steps() == [5]
    assert run.checkpoint_steps() == [0, 4], "a stop adds no numbered checkpoint"
    older = (run.checkpoint(4) / "model.safetensors").stat().st_ino
    rest = Learner(TOTAL, seed=77, done=5)
    saver._stop.reason = None
    fit(rest, save(resumes=True))
    assert_equal_to_the_whole(rest, module.losses + rest.losses)
    assert run.checkpoint_steps() == [0, 4, 8, 10]
    assert (run.checkpoint(4) / "model.safetensors").stat().st_ino == older


def test_a_signal_in_the_last_step_finishes_the_run(run: RunFolder, save: Any) -> None:
    module = Learner(TOTAL)
    module.at_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == TOTAL else None
    saver = save()
    fit(module, saver)
    assert saver.stopped is None
    assert run.checkpoint_steps()[-1] == TOTAL


def test_a_stop_asked_for_before_the_first_step_trains_nothing(run: RunFolder, save: Any, stop: StopRequest) -> None:
    stop.request("SIGTERM was received")
    module, saver = Learner(TOTAL), save()
    fit(module, saver)
    assert module.steps_done == 0
    assert saver.stopped is not None
    assert run.state_steps() == [0]


def test_touch_save_writes_a_state_and_goes_on(run: RunFolder, save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, written = Learner(TOTAL), []
    write = callback.write_snapshot
    monkeypatch.setattr(callback, "write_snapshot", lambda *a: written.append(a[1].step) or write(*a))
    module.at_step = lambda step: (run.root / "save").touch() if step == 7 else None
    fit(module, save(state_every=100))
    assert written == [0, 7, 10]
    assert not (run.root / "save").exists()
    assert module.steps_done == TOTAL


@pytest.mark.slow
@pytest.mark.parametrize(("when", "state_then"), [(4, 4), (3, 0), (TOTAL, 9)])
def test_a_low_disk_stops_at_the_boundary_and_tears_nothing(
    run: RunFolder, save: Any, monkeypatch: pytest.MonkeyPatch, when: int, state_then: int
) -> None:
    """4: the checkpoint does not fit, the state does; 3: the state does not fit; 10: the last checkpoint does not."""
    module = Learner(TOTAL)
    weights = sum(p.nbytes for p in module.parameters())
    room = {"bytes": 10**12}
    monkeypatch.setattr(background, "free_bytes", lambda _: room["bytes"])

    def fill(step: int) -> None:
        if step == when:
            room["bytes"] = 0 if when == 3 else background.RESERVE_BYTES + weights - 1

    if when == 4:  # between the two writes somebody frees some space
        original = SaveCheckpoints._heed

        def heed_and_free(self: SaveCheckpoints, low: list[Any]) -> None:
            original(self, low)
            room["bytes"] = 10**12 if low else room["bytes"]

        monkeypatch.setattr(SaveCheckpoints, "_heed", heed_and_free)
    module.at_step = fill
    saver = save()
    fit(module, saver)
    assert module.steps_done == when
    assert saver.stopped is not None
    assert "disk is low" in saver.stopped
    assert f"the state of step {state_then} is saved" in saver.stopped
    assert run.state_steps() == [state_then]
    assert not list(run.root.rglob(".*"))
    room["bytes"] = 10**12
    monkeypatch.undo()
    saver._stop.reason = None
    rest = Learner(TOTAL, seed=5, done=state_then)
    fit(rest, save(resumes=True))
    assert_equal_to_the_whole(rest, module.losses[:state_then] + rest.losses)
    assert run.checkpoint_steps() == [0, 4, 8, 10]


def test_a_disk_that_fills_up_during_a_write_stops_the_run_too(
    run: RunFolder, save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    module = Learner(TOTAL)
    module.at_step = lambda step: monkeypatch.setattr(callback, "write_checkpoint", full) if step == 4 else None
    saver = save()
    fit(module, saver)
    assert 4 <= module.steps_done <= (6 if saver._plan.background else 4)  # beside: told at a later boundary
    assert saver.stopped is not None
    assert run.checkpoint_steps() == [0]
    assert run.state_steps() == [module.steps_done]


@pytest.mark.parametrize("then", ["room", "stop"])
def test_a_run_that_waits_for_room_goes_on_when_there_is_some_or_stops_when_asked(
    run: RunFolder,
    save: Any,
    stop: StopRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    then: str,
) -> None:
    module, room, waits = Learner(TOTAL), {"bytes": 10**12}, []
    monkeypatch.setattr(background, "free_bytes", lambda _: room["bytes"])
    module.at_step = lambda step: room.update(bytes=0) if step == 4 else None

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3 and then == "room":
            room["bytes"] = 10**12
        elif len(waits) == 3:
            stop.request("SIGTERM was received")

    monkeypatch.setattr(callback.time, "sleep", wait)
    saver = save(low_disk="wait")
    fit(module, saver)
    assert waits == [callback.POLL_S] * 3
    said = capsys.readouterr().err
    assert said.count("Training waits here until there is room") == 1
    assert "checkpoint 4" in said
    assert not list(run.root.rglob(".*"))
    if then == "room":
        assert saver.stopped is None
        assert (run.checkpoint_steps(), run.state_steps()) == ([0, 4, 8, 10], [TOTAL])
        assert_equal_to_the_whole(module, module.losses)
    else:
        assert module.steps_done == 4
        assert "SIGTERM was received" in str(saver.stopped)
        assert (run.checkpoint_steps(), run.state_steps()) == ([0], [3])


def test_a_folder_that_cannot_be_written_fails_the_run(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EACCES, "permission denied")

    monkeypatch.setattr(callback, "write_snapshot", forbidden)
    with pytest.raises(RunFailed, match=r"state of step 0 could not be written.*permission"):
        fit(Learner(TOTAL), save())


class TestStopRequest:
    def test_the_second_interrupt_is_at_once(self, stop: StopRequest) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT was received"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    def test_other_signals_may_come_twice(self, stop: StopRequest) -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGTERM was received"

    def test_handlers_are_put_back(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
        with StopRequest() as stop:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Lightning does in between
            stop.install()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.reason is not None
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before

    def test_outside_the_main_thread_the_run_does_without(self) -> None:
        done = []

        def work() -> None:
            with StopRequest() as stop:
                done.append(stop.reason)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert done == [None]


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_state(run: RunFolder, base: Path) -> None:
    """SIGKILL inside the write of a state: the older one is there, and the next sitting sweeps up."""
    code = (
        "import os, signal, sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "import voxtrain.checkpoint.snapshot as snapshot\n"
        "from learner import Learner, checkpoint_plan, fit\n"
        "from voxtrain.checkpoint.callback import SaveCheckpoints\n"
        "from voxtrain.checkpoint.stop import StopRequest\n"
        "from voxtrain.run_folder import RunFolder\n"
        "run, write = RunFolder(Path(sys.argv[1])), snapshot.write_safetensors\n"
        "def killed(path, *rest):\n"
        "    if 'step_0000006' in str(path) and path.name.startswith('optim'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(path, *rest)\n"
        "snapshot.write_safetensors = killed\n"
        "plan = checkpoint_plan(every=4, state_every=3)\n"
        "fit(Learner(10), SaveCheckpoints(run, plan, 10, Path(sys.argv[2]), None, {}, StopRequest(), False, {}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run.root, base], check=False, cwd=Path(__file__).parents[1], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run.state_steps() == [3]
    assert len(list(run.states.glob(".writing_*"))) == 1
    module = Learner(TOTAL, seed=9, done=3)
    plan = checkpoint_plan(every=4, state_every=3)
    fit(module, SaveCheckpoints(run, plan, TOTAL, base, None, {}, StopRequest(), True, {}))
    assert not list(run.root.rglob(".*"))
    assert_equal_to_the_whole(module, whole_run().losses[:3] + module.losses)
