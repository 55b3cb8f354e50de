"""What the tests of groups and splits build them from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voxtrain.manifest.splitting.group import NO_GROUP, Grouping, Groups, join_groups


def groups_of(rows: Sequence[Sequence[str] | None], grouping: Grouping, kept: Sequence[bool] | None = None) -> Groups:
    """The groups of rows by their labels, one for each column ("": none), else one."""
    known: list[dict[str, int]] = [{} for _ in range(grouping.width)]
    codes = np.full((grouping.width, len(rows)), NO_GROUP, dtype=np.int32)
    for place, row in enumerate(rows):
        for column, name in enumerate(row or ()):
            if name:
                codes[column, place] = known[column].setdefault(name, len(known[column]))
    if grouping.width == 1:
        return Groups(codes[0], list(known[0]), known[0])
    return join_groups(list(codes), known, grouping.columns, None if kept is None else np.array(kept, dtype=np.bool_))
