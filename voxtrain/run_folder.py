"""The run folder: the only place where training, validation, listening, selection and reports meet.

This is the only file that spells a path under outputs/. Each file there has one writer and is complete or absent
(durable.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

STEP_NAME = re.compile(r"step_(\d{7})")
SPLITS = ("train", "validation", "test")


def step_name(step: int) -> str:
    """`step_0001610`: the name of a checkpoint, state, outlier or listening entry of that step."""
    return f"step_{step:07d}"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """Resolved settings, YAML."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Machine and package versions, JSON."""
        return self.root / "environment.json"

    @property
    def run(self) -> Path:
        """Status, exit code, steps, evidence of completion, JSON."""
        return self.root / "run.json"

    @property
    def data(self) -> Path:
        """Where the audited, cleaned and split rows are."""
        return self.root / "data"

    @property
    def metrics(self) -> Path:
        """One row per optimizer step, CSV, append-only."""
        return self.root / "metrics.csv"

    @property
    def saves(self) -> Path:
        """One row per save: what, how large, how long, and how long training stood still; CSV, append-only."""
        return self.root / "saves.csv"

    @property
    def training_lock(self) -> Path:
        """Held by the process that trains; gone when it has ended."""
        return self.root / "train.lock"

    @property
    def log(self) -> Path:
        """What the run said, append-only."""
        return self.root / "run.log"

    @property
    def memory(self) -> Path:
        """Predicted and measured memory, JSON."""
        return self.root / "memory.json"

    @property
    def report(self) -> Path:
        """The run report, one self-contained page."""
        return self.root / "report.html"

    @property
    def outliers(self) -> Path:
        """What stood out in training."""
        return self.root / "outliers"

    @property
    def outlier_rows(self) -> Path:
        """One line per suspected row, JSONL: what `clean.exclude` takes."""
        return self.outliers / "exclude.jsonl"

    @property
    def row_visits(self) -> Path:
        """One line per step, its rows with their losses, append-only."""
        return self.outliers / "rows.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Numbered checkpoints and the link `latest`."""
        return self.root / "checkpoints"

    @property
    def latest(self) -> Path:
        """A relative link to the newest numbered checkpoint."""
        return self.checkpoints / "latest"

    @property
    def save_request(self) -> Path:
        """Touched by whoever wants the state saved at the next step boundary."""
        return self.root / "save"

    @property
    def states(self) -> Path:
        """Resumable states."""
        return self.root / "state"

    @property
    def evaluation(self) -> Path:
        """What the post-hoc process found."""
        return self.root / "evaluation"

    @property
    def evaluated_checkpoints(self) -> Path:
        """One line per judged checkpoint, CSV."""
        return self.evaluation / "checkpoints.csv"

    @property
    def evaluated_rows(self) -> Path:
        """One record per checkpoint, row and draw, Parquet."""
        return self.evaluation / "rows.parquet"

    @property
    def evaluation_lock(self) -> Path:
        """Held by the process that judges; gone when it has ended."""
        return self.evaluation / "rows.lock"

    @property
    def selection(self) -> Path:
        """Which checkpoint, by which rule, on what evidence, JSON."""
        return self.evaluation / "selection.json"

    @property
    def listening(self) -> Path:
        """The listening page, its table and the WAV files."""
        return self.evaluation / "listening"

    @property
    def listening_page(self) -> Path:
        """The listening page, HTML."""
        return self.listening / "index.html"

    @property
    def listening_table(self) -> Path:
        """One line per sample, CSV."""
        return self.listening / "listening.csv"

    @property
    def listening_checkpoints(self) -> Path:
        """One line per checkpoint that has spoken: measures and scores with their intervals, CSV."""
        return self.listening / "checkpoints.csv"

    @property
    def recordings(self) -> Path:
        """Real recordings, as they are and through the AudioVAE: WAV files."""
        return self.listening / "recordings"

    @property
    def recordings_table(self) -> Path:
        """One line for each of them, CSV."""
        return self.listening / "recordings.csv"

    @property
    def votes(self) -> Path:
        """Votes of blind comparisons, a JSON file for each sitting."""
        return self.listening / "votes"

    @property
    def post_hoc(self) -> Path:
        """The post-hoc processes with their exit codes and seconds, JSON."""
        return self.evaluation / "post_hoc.json"

    @property
    def post_hoc_log(self) -> Path:
        """What the post-hoc processes said, append-only."""
        return self.evaluation / "post_hoc.log"

    def checkpoint(self, step: int) -> Path:
        """The folder of one numbered checkpoint."""
        return self.checkpoints / step_name(step)

    def state(self, step: int) -> Path:
        """The folder of the resumable state after `step` updates."""
        return self.states / step_name(step)

    def outlier(self, step: int) -> Path:
        """The rows behind a spike at `step`, JSON."""
        return self.outliers / f"{step_name(step)}.json"

    def samples(self, step: int) -> Path:
        """The folder of the WAV files made from one checkpoint."""
        return self.listening / step_name(step)

    def checkpoint_steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return numbered_steps(self.checkpoints)

    def state_steps(self) -> list[int]:
        """The steps of all complete states, ascending (more than one only while a newer one replaces an older)."""
        return numbered_steps(self.states)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """What manifest preparation writes: RUN/data, or the folder that `voxtrain.manifest out=DIR` names."""

    root: Path

    @property
    def audit(self) -> Path:
        """The ledger, JSON."""
        return self.root / "audit.json"

    @property
    def rejects(self) -> Path:
        """One line per rejected row, JSONL."""
        return self.root / "rejects.jsonl"

    @property
    def reported(self) -> Path:
        """What is remarkable about kept rows, a line for each finding, JSONL."""
        return self.root / "reported.jsonl"

    @property
    def page(self) -> Path:
        """The audit as a self-contained page, HTML."""
        return self.root / "audit.html"

    @property
    def split(self) -> Path:
        """The leakage certificate, JSON."""
        return self.root / "split.json"

    def rows(self, split: str) -> Path:
        """The kept rows of one of `SPLITS`, JSONL with absolute audio paths."""
        return self.root / f"{split}.jsonl"


def numbered_steps(folder: Path) -> list[int]:
    """The steps of the folders named `step_NNNNNNN` directly under `folder`, ascending."""
    if not folder.is_dir():
        return []
    found = (STEP_NAME.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(int(match[1]) for match in found if match)
