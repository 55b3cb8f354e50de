"""One judge at a time, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
