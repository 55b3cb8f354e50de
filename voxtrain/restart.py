"""A run whose Slurm job is started again: what it goes on with, and when the job is put back into the queue.

A job that is started again runs the same command line. Its own run is the one whose run.json names the same job and
the same command line; nothing else has to be remembered.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from voxtrain.checkpoint.slurm import requeue, this_job
from voxtrain.checkpoint.stop import was_received
from voxtrain.durable import read_json
from voxtrain.fault import DONE, WRONG_INPUT
from voxtrain.preflight import Start, resume_start, run_parent
from voxtrain.run_folder import RunFolder


def restarted(overrides: Sequence[str]) -> Start | None:
    """The run that this job began when it was started before, to go on with; None where a command line says it all.

    A run that was ended before its first state has learnt nothing: it is removed, and the command line starts it anew.
    Settings are those of the run. Raises InputError where it cannot go on.
    """
    job = this_job()
    if job is None or job.restarts == 0 or any(o.startswith("resume=") and o != "resume=null" for o in overrides):
        return None
    parent = run_parent(overrides)
    run = _begun_by(job.name, overrides, parent)
    if run is None:
        _say(f"Start {job.restarts + 1} of Slurm job {job.name}: it began no run under {parent}; one begins now.")
        return None
    if not run.state_steps():
        _say(f"Start {job.restarts + 1} of Slurm job {job.name}: {run.root} had learnt nothing yet, and begins anew.")
        shutil.rmtree(run.root)
        return None
    _say(f"Start {job.restarts + 1} of Slurm job {job.name}: going on with {run.root}.")
    return resume_start(run.root, [])


def _begun_by(job: str, overrides: Sequence[str], parent: Path) -> RunFolder | None:
    """The newest run under `parent` that a job began with a command line."""
    for record in sorted(parent.glob("*/run.json"), reverse=True):
        known = read_json(record)
        if known.get("slurm_job") == job and known.get("overrides") == list(overrides):
            return RunFolder(record.parent)
    return None


def requeue_if_warned(start: Start, exit_code: int) -> None:
    """Put the job back into the queue where Slurm's warning (SIGUSR1) ended the run before all was done.

    Called when everything is on disk: Slurm ends the process soon after.
    """
    job = this_job()
    if job is None or not was_received(signal.SIGUSR1) or exit_code in (DONE, WRONG_INPUT):
        return
    if start.settings.checkpoint.requeue == "never" or _failed(start.run):
        return
    _say(f"SIGUSR1 was received: Slurm job {job.name} goes back into the queue, and on from here.")
    why = requeue(job)
    if why is not None:
        _say(f"`scontrol requeue {job.name}` failed: {why}\nGo on by hand: python -m voxtrain resume={start.run.root}")


def _failed(run: RunFolder) -> bool:
    """Whether the run broke, which it would do again; one of which nothing is left was only interrupted."""
    return run.run.is_file() and read_json(run.run)["status"] == "failed"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
