"""The Slurm job that this process belongs to, and putting it back into the queue. Imports no torch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE_S = 60.0
"""How long Slurm's controller may take to answer: the end of the job is near."""


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """One job; a task of a job array is one, and keeps its name when it is started again."""

    name: str
    restarts: int  # how often it was started before


def this_job(environment: Mapping[str, str] = os.environ) -> SlurmJob | None:
    """The job of this process; None outside Slurm.

    `SLURM_RESTART_COUNT` is set from the second start on (sbatch(1), output environment variables).
    """
    name = environment.get("SLURM_JOB_ID", "")
    if not name:
        return None
    array, task = environment.get("SLURM_ARRAY_JOB_ID", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
    restarts = environment.get("SLURM_RESTART_COUNT", "")
    return SlurmJob(f"{array}_{task}" if array and task else name, int(restarts) if restarts.isdigit() else 0)


def requeue(job: SlurmJob) -> str | None:
    """Put the job back into the queue, which ends it soon by SIGTERM; returns why that failed, None where it did not.

    Slurm starts it again with the same script, under the same name.
    """
    command = ["scontrol", "requeue", job.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
