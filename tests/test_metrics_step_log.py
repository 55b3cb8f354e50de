"""metrics.csv: every step once, in order, cut back on resume; and what is shown while training."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from voxtrain.durable import read_log_rows, write_table
from voxtrain.fault import RunFailed
from voxtrain.metrics.progress import TrainingProgress, clock
from voxtrain.metrics.step_log import COLUMNS, StepLog
from voxtrain.model.step import StepReport
from voxtrain.run_folder import RunFolder


def report(step: int, **changed: Any) -> StepReport:
    plain = StepReport(
        step=step,
        loss_diff=1 / (step + 2),
        loss_stop=0.125,
        loss_total=1 / (step + 2) + 0.125,
        grad_norm=3.5,
        lr=1e-5,
        rows=8,
        rows_seen=8 * step,
        micro_batches=2,
        positions=1001,
        padding_share=0.25,
        audio_seconds=0.1 * step,
        seconds=0.5,
        skipped=False,
        row_losses=(),
    )
    return dataclasses.replace(plain, **changed)


class Steps(pl.LightningModule):
    """A module whose steps learn nothing and report."""

    def __init__(self, first_step: int, fails_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps_done, self.fails_at = first_step, fails_at

    def training_step(self, batch: object) -> dict[str, StepReport]:
        self.steps_done += 1
        if self.steps_done == self.fails_at:
            raise ZeroDivisionError
        self.optimizers().step()
        return {"report": report(self.steps_done)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(callbacks: list[pl.Callback], first_step: int, last_step: int, fails_at: int | None = None) -> None:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Steps(first_step, fails_at), train_dataloaders=list(range(first_step, last_step)))


def drive(log: StepLog, steps: range) -> None:
    """Call the hooks without a trainer, which is fast enough for many examples."""
    module = Steps(0)
    log.setup(None, module, "fit")  # type: ignore[arg-type]
    for step in steps:
        log.on_train_batch_end(None, module, {"report": report(step)}, None, 0)  # type: ignore[arg-type]
    log.teardown(None, module, "fit")  # type: ignore[arg-type]


def test_row_n_is_update_n_under_lightning(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    fit([StepLog(run, 0)], 0, 5)
    with run.metrics.open() as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    rows = read_log_rows(run.metrics)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [float(row["train/loss/diff"]) for row in rows] == [1 / (n + 2) for n in range(1, 6)]  # to the last bit
    assert [int(row["train/rows"]) for row in rows] == [8, 16, 24, 32, 40]
    assert float(rows[-1]["train/audio_seconds"]) == pytest.approx(1.5, abs=1e-6)  # rounded to a microsecond
    assert rows[0]["train/skipped"] == "0"
    assert rows[0]["train/positions_per_second"] == "2002.0"  # 1001 in half a second
    assert float(rows[-1]["train/peak_gib"]) > 0


def test_each_row_is_on_disk_when_the_step_ends(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = StepLog(run, 0)
    log.setup(None, Steps(0), "fit")  # type: ignore[arg-type]
    log.on_train_batch_end(None, Steps(0), {"report": report(1)}, None, 0)  # type: ignore[arg-type]
    assert len(read_log_rows(run.metrics)) == 1
    log.close()


def test_the_file_is_whole_after_an_exception(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = StepLog(run, 0)
    with pytest.raises(ZeroDivisionError):
        fit([log], 0, 5, fails_at=4)
    assert [row["step"] for row in read_log_rows(run.metrics)] == ["1", "2", "3"]
    assert log._file is None


def test_a_skipped_step_has_empty_cells(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = StepLog(run, 0)
    log.setup(None, Steps(0), "fit")  # type: ignore[arg-type]
    broken = report(1, loss_diff=math.nan, loss_total=math.inf, grad_norm=math.nan, skipped=True)
    log.on_train_batch_end(None, Steps(0), {"report": broken}, None, 0)  # type: ignore[arg-type]
    log.close()
    (row,) = read_log_rows(run.metrics)
    assert (row["train/loss/diff"], row["train/loss/total"], row["train/grad_norm"]) == ("", "", "")
    assert (row["train/loss/stop"], row["train/skipped"]) == ("0.125", "1")


@settings(max_examples=25, deadline=None)
@given(
    logged=st.integers(0, 12),
    resumed_from=st.integers(0, 12),
    total=st.integers(0, 14),
    torn=st.binary(max_size=20).filter(lambda tail: b"\n" not in tail and b"\r" not in tail),
)
def test_a_resumed_log_equals_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, logged: int, resumed_from: int, total: int, torn: bytes
) -> None:
    resumed_from = min(resumed_from, logged)
    cut, whole = (RunFolder(tmp_path_factory.mktemp(name)) for name in ("cut", "whole"))
    drive(StepLog(cut, 0), range(1, logged + 1))
    with cut.metrics.open("ab") as file:
        file.write(torn.hex().encode())  # a row that was being written when the process died
    drive(StepLog(cut, resumed_from), range(resumed_from + 1, total + 1))
    drive(StepLog(whole, 0), range(1, max(total, resumed_from) + 1))
    same = [key for key in COLUMNS if key != "train/peak_gib"]  # memory depends on what else the process does
    want = [[row[key] for key in same] for row in read_log_rows(whole.metrics)]
    assert [[row[key] for key in same] for row in read_log_rows(cut.metrics)] == want
    assert cut.metrics.read_text().count("step,") == 1


def test_resume_without_the_earlier_rows_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    drive(StepLog(run, 0), range(1, 3))
    with pytest.raises(RunFailed, match="steps 1 to 5"):
        drive(StepLog(run, 5), range(6, 7))


def test_a_file_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    drive(StepLog(run, 0), range(1, 4))
    older = [{k: v for k, v in row.items() if k != "train/positions_per_second"} for row in read_log_rows(run.metrics)]
    write_table(run.metrics, older)
    before = run.metrics.read_bytes()
    with pytest.raises(RunFailed, match=r"lacks train/positions_per_second; has also nothing(.|\n)*start a new run"):
        drive(StepLog(run, 2), range(3, 4))
    assert run.metrics.read_bytes() == before


def test_plain_lines_come_at_each_tenth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit([TrainingProgress(40, 0)], 0, 40)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [int(line.split("/")[0][5:]) for line in lines] == list(range(4, 41, 4))
    pattern = r"step 40/40  0:00 left  loss/diff 0\.0238  loss/stop 0\.1250  grad norm 3\.5000  .* rows/s  peak .* GiB"
    assert re.fullmatch(pattern, lines[-1])


def test_a_resumed_run_tells_its_own_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    fit([TrainingProgress(40, 33)], 33, 40)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["36/40", "40/40"]


def test_on_a_terminal_a_bar_is_shown_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, screen = TrainingProgress(5, 0), io.StringIO()
    progress._console = Console(file=screen, force_terminal=True, width=160)
    with pytest.raises(ZeroDivisionError):
        fit([progress], 0, 5, fails_at=4)
    assert "loss/stop 0.1250" in screen.getvalue()
    assert progress._bar is None


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:00"), (7.4, "0:07"), (750, "12:30"), (18190, "5:03:10")])
def test_clock(seconds: float, told: str) -> None:
    assert clock(seconds) == told
