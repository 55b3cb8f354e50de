"""rows.parquet: every loss of every checkpoint, row and draw, and the terms under which they may be compared.

The file's schema carries the terms (draws, dtype, the validation rows themselves). Records under other terms are never
mixed: they are judged again, or, where a checkpoint is gone by now, kept by refusing to judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from voxtrain.durable import file_aside
from voxtrain.fault import Fault, InputError
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from voxtrain.validation.losses import DrawLoss

T_COLUMNS = tuple(f"loss/diff/t{k}" for k in range(5))
SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("draw", pa.int32(), nullable=False),
        pa.field("loss/diff", pa.float64(), nullable=False),
        pa.field("loss/stop", pa.float64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in T_COLUMNS),
        pa.field("positions", pa.int32(), nullable=False),
    ]
)
KEY = b"voxtrain.terms"


def terms(rows: Path, draws: int, dtype: str) -> dict[str, Any]:
    """What must be the same for two losses to be comparable; `rows` is the file of the validation rows."""
    return {"rows": hashlib.sha256(rows.read_bytes()).hexdigest(), "draws": draws, "dtype": dtype}


def read_rows(run: RunFolder) -> pa.Table | None:
    """All records so far; None where nothing was judged yet. Raises InputError when the file is broken."""
    path = run.evaluated_rows
    if not path.is_file():
        return None
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        remedy = "remove the file and judge again: python -m voxtrain.validation RUN"
        raise InputError(Fault(str(path), f"it cannot be read: {error}", remedy)) from None


def comparable_rows(run: RunFolder, wanted: dict[str, Any]) -> pa.Table | None:
    """The records so far if they were made under the `wanted` terms; None otherwise, so that all are made again.

    Raises InputError when that cannot be, since a judged checkpoint is no longer there.
    """
    table = read_rows(run)
    if table is None:
        return None
    made = json.loads((table.schema.metadata or {}).get(KEY, b"{}"))
    if made == wanted:
        return table
    gone = sorted(set(judged_steps(table)) - set(run.checkpoint_steps()))
    if not gone:
        return None
    differing = ", ".join(
        f"{key} = {made.get(key)}, now {wanted[key]}" for key in wanted if made.get(key) != wanted[key]
    )
    steps = ", ".join(map(str, gone))
    what = f"it was made under other terms ({differing}), and the judged checkpoints {steps} are no longer there"
    remedy = "judge with the run's own settings, or remove the file to judge again what is left"
    raise InputError(Fault(str(run.evaluated_rows), what, remedy))


def judged_steps(table: pa.Table | None) -> list[int]:
    """The steps that have records, ascending."""
    return [] if table is None else sorted(table["step"].unique().to_pylist())


def with_step(
    table: pa.Table | None,
    step: int,
    rows: Sequence[tuple[str, str]],
    losses: Sequence[DrawLoss],
    made_under: dict[str, Any],
) -> pa.Table:
    """The table with one more checkpoint; `rows` holds the (id, group) of every validation row."""
    records = [
        {
            "step": step,
            "id": rows[loss.row][0],
            "group": rows[loss.row][1],
            "draw": loss.draw,
            "loss/diff": loss.diff,
            "loss/stop": loss.stop,
            **dict(zip(T_COLUMNS, loss.diff_by_t, strict=True)),
            "positions": loss.positions,
        }
        for loss in losses
    ]
    schema = SCHEMA.with_metadata({KEY: json.dumps(made_under).encode()})
    added = pa.Table.from_pylist(records, schema=schema)
    both = added if table is None else pa.concat_tables([table.cast(schema), added])
    return both.sort_by([("step", "ascending"), ("id", "ascending"), ("draw", "ascending")])


def write_rows(run: RunFolder, table: pa.Table) -> None:
    """Write rows.parquet, complete or not at all."""
    run.evaluation.mkdir(parents=True, exist_ok=True)
    with file_aside(run.evaluated_rows) as aside:
        pq.write_table(table, aside, compression="zstd")
