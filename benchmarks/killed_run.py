"""One run of the tiny model that is killed by SIGKILL at a random moment and resumed, beside one that was not.

Every run is a process of its own, forked from one that has imported torch, and goes through voxtrain's front door.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtrain.checkpoint.digests import digest_of
from voxtrain.checkpoint.facts import check_content, read_facts
from voxtrain.checkpoint.folders import LEFTOVERS
from voxtrain.durable import read_json, read_log_rows
from voxtrain.run_folder import RunFolder

STEPS, EVERY, STATE_EVERY = 20, 4, 2
SHORT = (
    *(f"train.max_steps={STEPS}", f"checkpoint.every={EVERY}", f"checkpoint.state_every={STATE_EVERY}"),
    *("train.batch_size=1", "train.grad_accum=1", "validation.when=never"),
)
TIMED = frozenset(("train/seconds", "train/peak_gib", "train/positions_per_second"))
"""Columns of metrics.csv that say how long, and not what."""
AIMED_SHARE = 0.6
"""Of the runs are killed inside a save; the others at a moment chosen without looking."""
LONGEST_SAVE_S = 0.01
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What is trained, and how it is saved."""

    name: str
    overrides: tuple[str, ...]


EIGHT_BITS = ("+recipe=demo", "memory.state=8bit")
KINDS = (
    Kind("full, 8-bit state, in the background", EIGHT_BITS),
    Kind("full, 8-bit state, in the background, no buffer", (*EIGHT_BITS, "checkpoint.buffer_gib=0")),
    Kind("full, 8-bit state, blocking", (*EIGHT_BITS, "checkpoint.background=false")),
    Kind("full, fp32 state, in the background", ("+recipe=demo",)),
    Kind("LoRA, in the background", ("+recipe=lora_demo",)),
)


@dataclass(frozen=True, slots=True)
class Whole:
    """What a run that nobody killed ends with."""

    seconds: float  # from the first state to the end
    state: dict[str, str]  # digests of the last state's files
    checkpoints: dict[str, str]  # digests of every file of every numbered checkpoint
    rows: list[dict[str, str]]  # of metrics.csv, without what is timed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one killed run."""

    kind: str
    inside_a_save: bool  # something was half-written when it was killed
    state_at_kill: int | None  # the newest whole state; None: there was none
    steps_at_kill: int  # in metrics.csv
    checkpoints_at_kill: int
    wrong: list[str]  # what is not as it must be


def prepare_imports() -> None:
    """Import once what every run needs; nothing may compute yet, since threads do not survive a fork."""
    import pytorch_lightning  # noqa: F401

    import voxtrain.checkpoint.callback
    import voxtrain.data.datamodule
    import voxtrain.metrics.step_log
    import voxtrain.model.module
    import voxtrain.train  # noqa: F401
    from voxtrain.optim.eight_bits import bitsandbytes

    bitsandbytes("8bit")
    gc.collect()
    gc.freeze()


def start(arguments: Sequence[str], log: Path) -> int:
    """Fork a process that does `python -m voxtrain ARGUMENTS`, saying all to `log`; returns its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with log.open("ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.argv = ["voxtrain", *arguments]
        from voxtrain.__main__ import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def whole_run(kind: Kind, folder: Path) -> Whole:
    """Train without a kill."""
    run = RunFolder(folder / "whole")
    pid = start([*kind.overrides, *SHORT, f"hydra.run.dir={run.root}"], folder / "log.txt")
    _wait_for_first_state(run, pid)
    began = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the run without a kill exits with {code}: {(folder / 'log.txt').read_text()[-3000:]}"
    return Whole(time.monotonic() - began, *_result(run))


def killed_run(kind: Kind, folder: Path, whole: Whole, draw: random.Random) -> Outcome:
    """Train, kill, look, resume, look again."""
    run, log = RunFolder(folder / "run"), folder / "log.txt"
    while not _killed(kind, run, log, whole, draw):
        pass
    inside, at_kill = bool(_left_over(run)), _loadable_state(run)
    steps = len(read_log_rows(run.metrics))
    older = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in _numbered_files(run)}
    complete = len(run.checkpoint_steps())
    pid = start([f"resume={run.root}"], log)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 0:
        wrong = [f"the resumed run exits with {code}: {log.read_text()[-2000:]}"]
    else:
        wrong = list(_differences(run, whole, at_kill)) + _touched(older)
    return Outcome(kind.name, inside, at_kill, steps, complete, wrong)


def _killed(kind: Kind, run: RunFolder, log: Path, whole: Whole, draw: random.Random) -> bool:
    """Whether the run was killed in time; where it had ended before, everything is as if it had not been."""
    pid = start([*kind.overrides, *SHORT, f"hydra.run.dir={run.root}"], log)
    _wait_for_first_state(run, pid)
    until = time.monotonic() + draw.uniform(0, 0.95 * whole.seconds)
    aimed, after_s = draw.random() < AIMED_SHARE, draw.uniform(0, LONGEST_SAVE_S)
    while time.monotonic() < until and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    while aimed and not _left_over(run) and _is_alive(pid):
        pass
    time.sleep(after_s if aimed else 0)
    if _is_alive(pid):
        os.kill(pid, signal.SIGKILL)
        died = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if died and read_json(run.run)["status"] != "finished":  # else nothing is left to go on with
            return True
    shutil.rmtree(run.root)
    return False


def _is_alive(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def _wait_for_first_state(run: RunFolder, pid: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while not run.state_steps():
        assert _is_alive(pid), f"{run.root} ended before its first state; see log.txt beside it"
        assert time.monotonic() < until, f"{run.root} has no state after {PATIENCE_S} s"
        time.sleep(0.001)


def _left_over(run: RunFolder) -> list[str]:
    parents = [folder for folder in (run.checkpoints, run.states) if folder.is_dir()]
    return [path.name for folder in parents for path in folder.iterdir() if path.name.startswith(LEFTOVERS)]


def _loadable_state(run: RunFolder) -> int | None:
    """The newest state, every file of which is what was written."""
    if not run.state_steps():
        return None
    facts = read_facts(run)
    check_content(run.state(facts.step), facts)
    return facts.step


def _numbered_files(run: RunFolder) -> list[Path]:
    return [path for step in run.checkpoint_steps() for path in sorted(run.checkpoint(step).iterdir())]


def _result(run: RunFolder) -> tuple[dict[str, str], dict[str, str], list[dict[str, str]]]:
    state = {path.name: digest_of(path, "sha256") for path in run.state(STEPS).iterdir() if path.name != "state.json"}
    numbered = {f"{path.parent.name}/{path.name}": digest_of(path, "sha256") for path in _numbered_files(run)}
    rows = [{key: cell for key, cell in row.items() if key not in TIMED} for row in read_log_rows(run.metrics)]
    return state, numbered, rows


def _differences(run: RunFolder, whole: Whole, at_kill: int | None) -> list[str]:
    state, numbered, rows = _result(run)
    resumed = read_json(run.run)["resumed_from_step"]
    hidden = sorted(path.name for path in run.root.rglob(".*"))
    checks = {
        "there was no whole state when it was killed": at_kill is None,
        f"it went on from step {resumed}, and {at_kill} was the newest": resumed != at_kill,
        "full-precision weights or optimizer state differ": state != whole.state,
        "numbered checkpoints differ": numbered != whole.checkpoints,
        "metrics.csv differs": rows != whole.rows,
        f"there are orphans: {hidden}": bool(hidden),
        f"states {run.state_steps()} stand": run.state_steps() != [STEPS],
        "latest is not the last": run.latest.resolve() != run.checkpoint(STEPS).resolve(),
    }
    return [what for what, holds in checks.items() if holds]


def _touched(older: dict[Path, tuple[int, int]]) -> list[str]:
    now = {path: (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None for path in older}
    return [f"{path.parent.name}/{path.name} was touched" for path, before in older.items() if now[path] != before]
