"""What one optimizer step tells: the step log, the outlier trace and the progress bar read nothing else. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowLoss:
    """The losses of one row in one step, each the mean over the row's loss positions. May be NaN or infinite."""

    id: str
    place: int  # n, the row's place in the order
    diff: float
    stop: float
    total: float  # weighted sum of the two
    positions: int  # loss positions
    part: float  # what the row's means count in the step's; the parts of a step sum to 1


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step over all of its rows, whatever the cut into micro-batches."""

    step: int  # 1-based
    loss_diff: float
    loss_stop: float
    loss_total: float  # weighted sum of the two
    grad_norm: float  # global, before clipping
    lr: float  # of this update
    rows: int
    rows_seen: int  # since the first step, repeats counted
    micro_batches: int
    positions: int  # without padding
    padding_share: float  # of the positions that went through the model
    audio_seconds: float  # target audio
    seconds: float  # wall clock
    skipped: bool  # a loss or the gradient was not finite: no update was made
    row_losses: tuple[RowLoss, ...]  # by place, whatever the cut
