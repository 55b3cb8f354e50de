"""The steps of a run, one after the other: which rows, with which draws, cut into which micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import IterableDataset

from voxtrain.batch import Draws, StepBatch
from voxtrain.data.draws import training_draws
from voxtrain.data.order import row_index
from voxtrain.data.packing import PackedRow, collate
from voxtrain.data.share import cut_shares
from voxtrain.manifest.row import Row


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How steps are made of rows.

    max_positions: padded positions of one micro-batch; null: `batch_size` rows each. rank, ranks: of the processes that
    share every step, which this is. None of them changes anything that is learnt.
    """

    seed: int
    batch_size: int
    grad_accum: int
    max_positions: int | None
    cfg_rate: float  # share of positions whose condition is dropped
    rank: int = 0
    ranks: int = 1

    @property
    def rows(self) -> int:
        """Rows in a step."""
        return self.batch_size * self.grad_accum


class Steps(IterableDataset[StepBatch]):
    """Steps first_step + 1 .. total_steps, each one batch: its counts are of the whole step, its rows this rank's."""

    def __init__(
        self, rows: Sequence[Row], pack: Callable[[Row], PackedRow], plan: StepPlan, first_step: int, total_steps: int
    ) -> None:
        super().__init__()
        self._rows, self._pack, self._plan = rows, pack, plan
        self._first_step, self._total_steps = first_step, total_steps

    def __iter__(self) -> Iterator[StepBatch]:
        return (self.step(step) for step in range(self._first_step + 1, self._total_steps + 1))

    def step(self, step: int) -> StepBatch:
        """Step number `step`, 1-based: the rows at places (step-1) x rows .. step x rows - 1 of the order."""
        plan = self._plan
        places = range((step - 1) * plan.rows, step * plan.rows)
        return self._batch(step, [self._rows[row_index(plan.seed, n, len(self._rows))] for n in places], places)

    def of_rows(self, step: int, rows: Sequence[Row]) -> StepBatch:
        """Step number `step` as it would be of other rows than its own, repeated where they are too few."""
        chosen = [rows[n % len(rows)] for n in range(self._plan.rows)]
        return self._batch(step, chosen, range(self._plan.rows))

    def _batch(self, step: int, chosen: Sequence[Row], places: range) -> StepBatch:
        plan = self._plan
        packed = [self._pack(row) for row in chosen]
        lengths = [row.positions for row in packed]
        cuts = cut_shares(lengths, plan.ranks, plan.batch_size, plan.max_positions)
        micro_batches = tuple(
            collate(
                [packed[i] for i in part], [self._draws(packed[i], places[i]) for i in part], [places[i] for i in part]
            )
            for part in cuts[plan.rank]
        )
        return StepBatch(
            step=step,
            micro_batches=micro_batches,
            rows=plan.rows,
            loss_positions=sum(row.loss_positions for row in packed),
            positions=sum(lengths),
            padded_positions=sum(len(part) * max(lengths[i] for i in part) for cut in cuts for part in cut),
            audio_seconds=sum(row.duration_s or 0.0 for row in chosen),
        )

    def _draws(self, row: PackedRow, n: int) -> Draws:
        _, patch, dim = row.audio_feats.shape
        return training_draws(self._plan.seed, n, row.loss_positions, patch, dim, self._plan.cfg_rate)
