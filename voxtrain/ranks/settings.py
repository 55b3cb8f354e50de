"""The settings of the config group `trainer`: where a run computes, and in how many processes. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, PositiveInt


class TrainerSettings(BaseModel, frozen=True, extra="forbid"):
    """Where the run computes.

    devices: processes that share the rows of every step. With cuda each has a GPU of its own, with cpu they share the
    cores. kernels: what layers are computed with (model/operators.py). What is learnt does not depend on either, but
    for the order in which sums are taken.
    """

    accelerator: Literal["cpu", "cuda"]
    devices: PositiveInt
    threads: PositiveInt | None
    kernels: Literal["plain", "cpu"]

    def environment(self, already: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The variables to set before torch is imported, here and in the post-hoc processes. The user's own stay."""
        if self.threads is None or "OMP_NUM_THREADS" in already:
            return {}
        return {"OMP_NUM_THREADS": str(self.threads)}
