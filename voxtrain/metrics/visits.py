"""What each row's last visits cost: a ring buffer per row in bounded memory, rebuilt on resume from a log of visits.

The log, one line a step, and not the resumable state keeps them: a state holds what learning needs and nothing else,
while half a kilobyte a step is a record of its own, each row's losses over the whole run. It is flushed at each step
but not synced: a killed process loses nothing; after a power cut the buffer may lack the last visits.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from voxtrain.model.step import StepReport

MOST_VISITS = 200_000
"""Visits in memory, over all rows: about 40 MB. Rows that were not seen for longest go first."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One row in one step. A loss that was not finite is None."""

    step: int  # 1-based
    id: str
    diff: float | None
    stop: float | None
    positions: int  # loss positions

    @property
    def losses(self) -> tuple[float, float] | None:
        """Both, where both are numbers."""
        return None if self.diff is None or self.stop is None else (self.diff, self.stop)


def visits_of(report: StepReport) -> list[Visit]:
    """The visits of one step, in the order of its rows."""
    return [Visit(report.step, row.id, finite(row.diff), finite(row.stop), row.positions) for row in report.row_losses]


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite, which JSON does not know."""
    return value if math.isfinite(value) else None


class RingBuffer:
    """The last `each` visits of every row that was seen lately."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._rows: OrderedDict[str, deque[Visit]] = OrderedDict()  # the row that was seen last stands last

    def of(self, row_id: str) -> Sequence[Visit]:
        """The visits of one row that are still known, oldest first."""
        return tuple(self._rows.get(row_id, ()))

    def add(self, visits: Sequence[Visit]) -> None:
        """Add the visits of one step."""
        for visit in visits:
            self._rows.setdefault(visit.id, deque(maxlen=self._each)).append(visit)
            self._rows.move_to_end(visit.id)
        while len(self._rows) > max(1, MOST_VISITS // self._each):
            self._rows.popitem(last=False)


def line(visits: Sequence[Visit]) -> str:
    """The visits of one step as they stand in the log; losses are read back to the last bit."""
    rows = [[visit.id, visit.diff, visit.stop, visit.positions] for visit in visits]
    return json.dumps({"step": visits[0].step, "rows": rows}, ensure_ascii=False, allow_nan=False) + "\n"


def replay(path: Path, last_step: int, add: Callable[[list[Visit]], None]) -> int:
    """Give the visits of each step up to `last_step` to `add`, and cut the log off behind them.

    Goes line by line, since the log of a long run is larger than what is kept of it. A torn line ends it. Returns the
    number of steps that were found.
    """
    found = place = 0
    if not path.exists():
        return found
    with path.open("r+b") as log:
        for text in log:
            visits = _visits(text)
            if visits is None or visits[0].step > last_step:
                break
            add(visits)
            found, place = found + 1, place + len(text)
        log.truncate(place)
    return found


def _visits(text: bytes) -> list[Visit] | None:
    """The visits of one line; None where it is torn."""
    if not text.endswith(b"\n"):
        return None
    try:
        record = json.loads(text)
        return [Visit(record["step"], *row) for row in record["rows"]] or None
    except (ValueError, KeyError, TypeError):
        return None
