"""sweep.csv and sweep.html: one line for each job of a multirun, rebuilt from the run folders after every job.

Hydra imports this file at each start and swallows what a callback raises, so nothing heavy stands at the top, and what
goes wrong is told here.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode

from voxtrain.durable import write_table, write_whole
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from omegaconf import DictConfig

    from voxtrain.report.summary import Summary

JOB_FOLDER = re.compile(r"(\d+)_.+")  # hydra.sweep.subdir in conf/config.yaml
TABLE, PAGE = "sweep.csv", "sweep.html"


class SweepTable(Callback):
    """Keeps the sweep's table up to date.

    Must be named before the callback that validates: at the end of a job Hydra calls them backwards.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Hydra's hook, in the process of the job."""
        if config.hydra.mode == RunMode.MULTIRUN:
            _rebuild(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra's hook, in the process that started the jobs."""
        _rebuild(config)


def _rebuild(config: DictConfig) -> None:
    try:
        write_sweep(Path(str(config.hydra.sweep.dir)))
    except Exception as error:  # the jobs' own results stand; Hydra would swallow this without a word
        print(f"The sweep's table could not be written: {type(error).__name__}: {error}", file=sys.stderr)


def job_folders(sweep: Path) -> list[tuple[int, RunFolder]]:
    """The jobs of a sweep by number, those that have begun."""
    found = ((JOB_FOLDER.fullmatch(entry.name), entry) for entry in sweep.iterdir() if entry.is_dir())
    jobs = ((int(match[1]), RunFolder(entry)) for match, entry in found if match)
    return sorted((job for job in jobs if job[1].run.is_file()), key=lambda job: job[0])


def write_sweep(sweep: Path) -> Path:
    """Rebuild sweep.csv and sweep.html of the sweep's folder from its run folders; returns the page's path."""
    from voxtrain.report.compare import comparison_page
    from voxtrain.report.evidence import read_evidence
    from voxtrain.report.summary import summarize

    jobs = job_folders(sweep)
    summaries = [summarize(read_evidence(run), run.root.name) for _, run in jobs]
    changed = list(dict.fromkeys(key for summary in summaries for key in summary.overrides))
    lines = [_line(number, summary, changed) for (number, _), summary in zip(jobs, summaries, strict=True)]
    write_table(sweep / TABLE, lines)
    columns = {key: [summary.overrides.get(key, "") for summary in summaries] for key in changed}
    varied = {key: cells for key, cells in columns.items() if len(set(cells)) > 1}
    write_whole(sweep / PAGE, comparison_page("Sweep", sweep.name, summaries, varied or columns, sweep))
    return sweep / PAGE


def _line(number: int, summary: Summary, changed: list[str]) -> dict[str, Any]:
    """A line of sweep.csv: the job, what it changed, what came out. What is not known is an empty cell."""
    figures = {
        "selected_step": summary.selected_step,
        **{f"val/{loss}": value for loss, value in summary.held_out.items()},
        "train_seconds": summary.train_seconds,
        "peak_gib": summary.peak_gib,
        "exit_code": summary.exit_code,
        "status": summary.status,
        "run": summary.evidence.run.root.name,
    }
    known = {key: "" if value is None or _is_nan(value) else value for key, value in figures.items()}
    return {"job": number, **{key: summary.overrides.get(key, "") for key in changed}, **known}


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
