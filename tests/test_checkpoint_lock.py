"""One judge at a time, and a dead one holds nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from voxtrain.checkpoint import lock as lock_module
from voxtrain.checkpoint.lock import held
from voxtrain.fault import InputError

HOLDER = """
import sys, time
from pathlib import Path
from voxtrain.checkpoint.lock import held
with held(Path(sys.argv[1]), "judging"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_judge_is_told_who_is_at_work_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "evaluation" / "rows.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on .* is judging"), held(lock, "judging"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert lock.exists()  # left behind
    with held(lock, "judging"):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    lock = tmp_path / "rows.lock"
    with pytest.raises(KeyError), held(lock, "judging"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with held(lock, "judging"):
        pass


def test_a_disk_that_fails_at_the_end_says_nothing_over_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evaluation" / "rows.lock"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def work(patch: pytest.MonkeyPatch) -> None:
        with held(path, "judging"):
            patch.setattr(Path, "unlink", full)
            raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        work(patch)
    assert path.is_file()
    with held(path, "judging"):  # what stayed is nobody's
        pass
    assert not path.exists()


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT_S", 0.02)


@pytest.mark.usefixtures("quick_beats")
def test_a_holder_shows_that_it_is_alive(tmp_path: Path) -> None:
    lock = tmp_path / "rows.lock"
    with held(lock, "judging"):
        os.utime(lock, ns=(0, 0))
        until = time.monotonic() + 10
        while lock.stat().st_mtime_ns == 0:
            assert time.monotonic() < until
            time.sleep(0.005)


@pytest.mark.usefixtures("quick_beats")
def test_of_another_machine_the_heartbeat_counts(tmp_path: Path) -> None:
    """Where a file system keeps flock to one machine, nothing is locked here; the file alone tells."""
    lock, elsewhere = tmp_path / "rows.lock", "process 7 on elsewhere is judging this run"
    lock.write_text(elsewhere)
    ended = threading.Event()

    def beats() -> None:
        while not ended.wait(0.005):
            os.utime(lock)

    heart = threading.Thread(target=beats)
    heart.start()
    try:
        with pytest.raises(InputError, match=elsewhere), held(lock, "judging"):
            pass
        assert lock.read_text() == elsewhere
    finally:
        ended.set()
        heart.join()
    with held(lock, "judging"):  # silent for three beats: dead
        assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "rows.lock"

    def refuse(code: int) -> None:
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("fcntl.flock", flock)

    for code in lock_module.NO_LOCKS:
        refuse(code)
        with held(lock, "judging"):
            assert lock.read_text().startswith(f"process {os.getpid()} on ")
        assert not lock.exists()
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"), held(lock, "judging"):
        pass
