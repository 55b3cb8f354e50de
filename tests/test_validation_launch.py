"""What follows training: which processes, with which environment, and what is kept of how they ended."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from voxtrain.durable import read_json, write_json, write_whole
from voxtrain.fault import DONE, FAILED
from voxtrain.run_folder import RunFolder
from voxtrain.validation import launch
from voxtrain.validation.launch import STAGES, LaunchPostHoc, clean_environment, run_chain
from voxtrain.validation.stream import run_streamed

SPEAKER = """
import os, sys
print("out of", *sys.argv[1:])
print("err", os.environ.get("RANK"), os.environ.get("PYTHONUNBUFFERED"), file=sys.stderr)
sys.exit({code})
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose post-hoc stages are two small scripts: the first fails with exit code 3, the second succeeds."""
    for name, code in (("failing", 3), ("working", 0)):
        (tmp_path / f"{name}.py").write_text(SPEAKER.format(code=code))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(launch, "STAGES", (("first", "failing", ("--flag",)), ("second", "working", ())))
    folder = RunFolder(tmp_path / "run")
    write_whole(folder.config, "validation: {when: after_training}\n")
    return folder


def test_the_order_after_training_is_validate_listen_select_report() -> None:
    assert [(module, flags) for _, module, flags in STAGES] == [
        ("voxtrain.validation", ("--brief",)),
        ("voxtrain.listening", ()),
        ("voxtrain.validation", ("--select-only",)),
        ("voxtrain.report", ()),
    ]


def test_one_stage_that_fails_stops_no_other_and_is_kept(run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_chain(run.root) == FAILED
    outcome = read_json(run.post_hoc)
    assert outcome["exit_code"] == FAILED
    assert [(stage["name"], stage["exit_code"]) for stage in outcome["steps"]] == [("first", 3), ("second", 0)]
    assert all(stage["seconds"] > 0 for stage in outcome["steps"])
    log = run.post_hoc_log.read_text()
    assert f"out of {run.root} --flag\n" in log
    assert log.count("err None 1\n") == 2  # no rank, and output that is not held back
    assert "exit code 3" in capfd.readouterr().err


def test_a_chain_that_works_is_done(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "STAGES", launch.STAGES[1:])
    assert run_chain(run.root) == DONE
    assert read_json(run.post_hoc)["exit_code"] == DONE


def test_until_the_last_stage_has_ended_the_outcome_is_a_failure(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("voxtrain.validation.stream.run_streamed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_chain(run.root)
    assert read_json(run.post_hoc) == {"exit_code": FAILED, "steps": []}


def ended(value: Any, status: JobStatus = JobStatus.COMPLETED) -> JobReturn:
    """What Hydra hands on at the end of a job."""
    outcome = JobReturn(status=status)
    outcome.return_value = value
    return outcome


@pytest.mark.parametrize(
    ("exit_code", "when", "status", "starts"),
    [
        (0, "after_training", JobStatus.COMPLETED, True),
        (0, "never", JobStatus.COMPLETED, False),
        (1, "after_training", JobStatus.COMPLETED, False),
        (3, "after_training", JobStatus.COMPLETED, False),
        (0, "after_training", JobStatus.FAILED, False),
    ],
)
def test_only_a_job_that_trained_to_its_end_is_followed(
    exit_code: int, when: str, status: JobStatus, starts: bool, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained: list[Path] = []
    monkeypatch.setattr(launch, "run_chain", chained.append)
    write_whole(run.config, f"validation: {{when: {when}}}\n")
    value = ValueError("it raised") if status == JobStatus.FAILED else {"run": str(run.root), "exit_code": exit_code}
    other = OmegaConf.create({"validation": {"when": "never"}})  # the run's own settings count
    LaunchPostHoc().on_job_end(other, ended(value, status))
    assert chained == ([run.root] if starts else [])


def test_the_callback_never_raises(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.config.unlink()
    LaunchPostHoc().on_job_end(OmegaConf.create(), ended({"run": str(run.root), "exit_code": 0}))
    assert "After training" in capsys.readouterr().err


def test_the_environment_is_ours_without_what_belongs_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "MASTER_PORT", "PYTORCH_CUDA_ALLOC_CONF", "PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    kept = clean_environment()
    assert kept.items() >= {"CUDA_VISIBLE_DEVICES": "3", "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}.items()
    assert not [name for name in kept if name.startswith(("LOCAL_RANK", "MASTER", "PYTORCH_CUDA", "PL_", "TORCHELAS"))]


@pytest.mark.slow
def test_hydra_loads_the_callback_without_anything_heavy() -> None:
    heavy = "{'torch', 'pandas', 'pyarrow', 'pydantic', 'voxcpm', 'soundfile'}"
    code = f"import sys; import voxtrain.validation.launch; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


TERMINAL_USER = """
import os, sys, time
print(sys.stdout.isatty(), sys.stderr.isatty(), os.get_terminal_size(2).columns)
for part in (10, 60, 100):
    print(f"\\r\\x1b[2K\\x1b[32m{part} %\\x1b[0m", end="", file=sys.stderr)
print(file=sys.stderr)
"""

UNDER_A_TERMINAL = """
import sys
from pathlib import Path
from voxtrain.validation.stream import run_streamed
import os
sys.exit(run_streamed([sys.executable, sys.argv[1]], os.environ, Path(sys.argv[2])))
"""


def test_a_terminal_stays_a_terminal_and_the_log_stays_plain(tmp_path: Path) -> None:
    script, log = tmp_path / "user.py", tmp_path / "said.log"
    script.write_text(TERMINAL_USER)
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 123, 0, 0))
    command = [sys.executable, "-c", UNDER_A_TERMINAL, str(script), str(log)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        shown = b""
        try:
            while said := os.read(ours, 65536):
                shown += said
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert child.returncode == 0
    assert b"True True 123\r\n" in shown
    assert b"\x1b[32m100 %" in shown
    assert sorted(log.read_text().splitlines()) == ["100 %", "True True 123"]


def test_what_is_no_terminal_is_a_pipe_and_torn_lines_are_kept(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = tmp_path / "said.log"
    code = run_streamed([sys.executable, "-c", "print('a\\nb', end='')"], os.environ, log)
    assert code == 0
    assert capfdbinary.readouterr().out == b"a\nb"
    assert log.read_bytes() == b"a\nb\n"


def test_a_command_that_is_not_there_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert run_chain(run.root) == FAILED
    assert [stage["exit_code"] for stage in read_json(run.post_hoc)["steps"]] == [FAILED, FAILED]


@pytest.mark.parametrize(
    ("when", "written", "code"),
    [
        ("after_training", None, FAILED),  # killed before it began
        ("after_training", FAILED, FAILED),
        ("after_training", DONE, DONE),
        ("never", None, DONE),
    ],
)
def test_what_never_began_has_not_ended_well(tmp_path: Path, when: str, written: int | None, code: int) -> None:
    folder = RunFolder(tmp_path / "run")
    write_whole(folder.config, f"validation: {{when: {when}}}\n")
    if written is not None:
        write_json(folder.post_hoc, {"exit_code": written, "steps": []})
    assert launch.outcome_code(folder.root) == code
