"""Steps as a run reports them, made without a model: what the tests of the outlier trace read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from voxtrain.manifest.row import Row
from voxtrain.metrics.outliers import OutlierTrace
from voxtrain.metrics.step_log import StepLog
from voxtrain.model.step import RowLoss, StepReport
from voxtrain.run_folder import RunFolder

ROWS, PER_STEP = 40, 4
BAD, NAN = "row_07", math.nan


def manifest_rows() -> list[Row]:
    of_all = {"audio": "/speech/clip.wav", "group": "g"}
    texts = [f"sentence number {n}" for n in range(ROWS)]
    return [
        Row.from_record(of_all | {"id": f"row_{n:02d}", "text": text, "line": n + 1, "duration": 1.0 + n})
        for n, text in enumerate(texts)
    ]


def step_report(
    step: int, losses: Sequence[tuple[str, float, float, int]], grad_norm: float = 1.0, *, skipped: bool = False
) -> StepReport:
    """A step of rows (id, diff, stop, positions), each counting the same."""
    part = 1 / len(losses)
    rows = tuple(
        RowLoss(name, (step - 1) * len(losses) + n, diff, stop, diff + stop, positions, part)
        for n, (name, diff, stop, positions) in enumerate(losses)
    )
    diff, stop = (math.fsum(part * value for value in values) for values in list(zip(*losses, strict=True))[1:3])
    return StepReport(
        step=step,
        loss_diff=diff,
        loss_stop=stop,
        loss_total=diff + stop,
        grad_norm=grad_norm,
        lr=1e-5,
        rows=len(losses),
        rows_seen=len(losses) * step,
        micro_batches=1,
        positions=100,
        padding_share=0.0,
        audio_seconds=1.0,
        seconds=0.5,
        skipped=skipped,
        row_losses=rows,
    )


def ordinary(step: int, bad: Mapping[int, tuple[float, float]] | None = None) -> StepReport:
    """Rows of a seeded order with losses that scatter as real ones do. bad: (diff, stop) of `BAD` at some steps."""
    random = np.random.default_rng(step)
    names = [f"row_{n:02d}" for n in random.permutation(ROWS)[:PER_STEP] if f"row_{n:02d}" != BAD]
    losses = [(name, float(random.lognormal(0, 0.3)), float(random.lognormal(-3, 0.5)), 40) for name in names]
    if bad and step in bad:
        losses[0] = (BAD, *bad[step], 1)
    return step_report(step, losses, float(random.lognormal(0, 0.3)))


def drive(
    run: RunFolder, reports: Sequence[StepReport], *, first_step: int = 0, window: int = 40, threshold: float = 10.0
) -> OutlierTrace:
    """Let the step log and the trace hear of steps, as they would in a run."""
    log = StepLog(run, first_step)
    trace = OutlierTrace(run, manifest_rows(), first_step, window=window, threshold=threshold, history=3)
    module = type("Module", (), {"device": type("Device", (), {"type": "cpu"})})
    for listener in (log, trace):
        listener.setup(None, module, "fit")  # type: ignore[arg-type]
    for report in reports:
        for listener in (log, trace):
            listener.on_train_batch_end(None, module, {"report": report}, None, 0)  # type: ignore[arg-type]
    log.close()
    trace.teardown(None, module, "fit")  # type: ignore[arg-type]
    return trace


def written(run: RunFolder) -> dict[str, bytes]:
    """Every file of the trace, by name."""
    folder = run.outlier(0).parent
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
