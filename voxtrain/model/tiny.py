"""The settings of the tiny VoxCPM 2: upstream's own classes with random weights, for the demo and the tests.

Imports no torch; the building itself is in tiny_build.py and runs once for each (architecture, seed).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from voxtrain.fault import Fault, InputError
from voxtrain.model.released import agreed, count

BUILD = 1
"""Raised when tiny_build.py gives other weights for the same settings: older folders are then left alone."""


class TinyModel(BaseModel, frozen=True, extra="forbid"):
    """A small architecture, and the seed of its random weights."""

    path: str | None
    cache_dir: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    architecture: dict[str, Any]

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        count(self.architecture)
        if self.path is None and self.architecture["lm_config"]["vocab_size"] < 361:
            raise ValueError("architecture.lm_config.vocab_size is under 361, which the byte-level tokenizer needs")
        return self

    def folder(self) -> Path:
        """The model's folder; without a `path` it is built in the cache when it is not there yet.

        Builders in several processes wait for each other. Raises InputError when the cache cannot be written.
        """
        if self.path is not None:
            return agreed(Path(self.path).expanduser().resolve(), self.architecture)
        models = Path(self.cache_dir).expanduser().resolve() / "models"
        target = models / f"tiny_{self._key()}"
        if not target.is_dir():
            try:
                with _alone(models):
                    self._build(target)
            except OSError as error:
                remedy = "set data.cache_dir to a folder that can be written"
                raise InputError(Fault(f"model.cache_dir = {self.cache_dir}", str(error), remedy)) from None
        return target

    def _key(self) -> str:
        written = json.dumps([BUILD, self.seed, self.architecture], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()[:12]

    def _build(self, target: Path) -> None:
        if target.is_dir():  # another process was faster
            return
        from voxtrain.model.tiny_build import build

        build(target, self.architecture, self.seed)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock that only one process on this machine can hold."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
