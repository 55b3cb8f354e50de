"""run.json: what became of a run, and the evidence that it is complete."""

from __future__ import annotations

import datetime
import os
import sys
from typing import Any

from voxtrain.checkpoint.facts import way_on
from voxtrain.checkpoint.slurm import this_job
from voxtrain.durable import read_json, read_log_rows, write_json
from voxtrain.fault import DONE, FAILED, RunFailed
from voxtrain.run_folder import RunFolder


class RunRecord:
    """The one writer of run.json."""

    def __init__(self, run: RunFolder, overrides: tuple[str, ...]) -> None:
        self._run = run
        before = read_json(run.run) if run.run.is_file() else {}
        job = this_job()
        self._values: dict[str, Any] = {
            "status": "running",
            "exit_code": None,
            "steps": before.get("steps", 0),
            "total_steps": None,
            "resumed_from_step": None,
            "processes": 1,
            "slurm_job": None if job is None else job.name,
            "skipped": before.get("skipped", []),
            "overrides": list(overrides),
            "started": before.get("started", _now()),
            "ended": None,
            "train_seconds": before.get("train_seconds", 0.0),
            "message": "",
            "pid": os.getpid(),
            "evidence": None,
        }

    def write(self, **values: Any) -> None:
        """Set some values and write the file. Raises RunFailed where it cannot be written."""
        self.note(**values)
        try:
            write_json(self._run.run, self._values)
        except OSError as error:
            raise RunFailed(f"{self._not_written(error)}\n{way_on(self._run)}") from error

    def note(self, **values: Any) -> None:
        """Set some values, to be written when the file is written next."""
        unknown = set(values) - set(self._values)
        assert not unknown, f"run.json has no {unknown}"
        self._values |= values

    def _not_written(self, error: OSError) -> str:
        return f"{self._run.run} could not be written: {error.strerror or error}"

    def add_train_seconds(self, seconds: float) -> None:
        """Count training time over all sittings of the run."""
        self._values["train_seconds"] = round(self._values["train_seconds"] + seconds, 3)

    def close(self, status: str, exit_code: int, message: str = "") -> None:
        """Write how the run ended, with the evidence of completion.

        Where that cannot be written it is told, and a run that would be done has failed.
        """
        evidence = completion_evidence(self._run)
        if exit_code == DONE and not evidence["complete"]:
            status, exit_code, message = "failed", FAILED, f"the run ended but its files disagree: {evidence}"
        self.note(status=status, exit_code=exit_code, message=message, ended=_now(), evidence=evidence)
        try:
            write_json(self._run.run, self._values)
        except OSError as error:
            print(f"\n{self._not_written(error)}\nIt does not tell how the run ended.", file=sys.stderr)
            if exit_code == DONE:  # every other end is told already, with the way on
                print(way_on(self._run), file=sys.stderr)
                self._values["exit_code"] = FAILED

    @property
    def exit_code(self) -> int:
        """The exit code that `close` wrote."""
        return int(self._values["exit_code"])


def completion_evidence(run: RunFolder) -> dict[str, Any]:
    """The last step that each file of the run knows of; a finished run's agree."""
    logged = read_log_rows(run.metrics)
    last_logged = int(logged[-1]["step"]) if logged else 0
    last = {
        "last_logged_step": last_logged,
        "last_checkpoint": max(run.checkpoint_steps(), default=None),
        "last_state": max(run.state_steps(), default=None),
    }
    return last | {"complete": len(set(last.values())) == 1}


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
