"""Which page of Weights & Biases is written to."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class WandbPage(BaseModel, frozen=True, extra="forbid"):
    """A project; entity null: the account's own."""

    project: str
    entity: str | None
    mode: Literal["online", "offline"]
