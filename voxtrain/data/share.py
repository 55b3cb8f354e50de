"""Which rows of a step each rank takes, and the micro-batches that it makes of them.

Rows are shared before they are cut, so that no rank stands idle while there are as many rows as ranks. The longest
row goes first, each to the rank with the fewest positions so far: work is nearly linear in positions, and ranks wait
for the slowest. Rank 0 gets the longest row of all, so what it measures of memory stands for the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from voxtrain.data.packing import cut_step


def share_rows(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """For each rank its rows of a step: ascending indices into `lengths` (T of each row), every row once."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        least = loads.index(min(loads))
        shares[least].append(row)
        loads[least] += lengths[row]
    return [sorted(share) for share in shares]


def cut_shares(lengths: Sequence[int], ranks: int, batch_size: int, max_positions: int | None) -> list[list[list[int]]]:
    """For each rank its micro-batches of a step, each a list of indices into `lengths`; one rank has `cut_step`'s."""
    return [
        [[share[row] for row in part] for part in cut_step([lengths[row] for row in share], batch_size, max_positions)]
        for share in share_rows(lengths, ranks)
    ]
