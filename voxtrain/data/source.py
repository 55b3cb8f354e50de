"""The settings of the config group `data`: which manifest, what its rows are grouped by, where caches lie.

Imports no torch. `DemoSource`, which makes its own speech, is in demo_speech.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _named(path: Path) -> Path:
    if str(path) in ("", "."):
        raise ValueError("this names nothing")
    return path


Location = Annotated[Path, AfterValidator(_named), AfterValidator(_absolute)]
"""A path that the user wrote: `~` is expanded, and a relative one starts at the working directory."""


class Source(BaseModel, ABC, frozen=True, extra="forbid"):
    """Where rows come from."""

    group_by: Annotated[str, Field(min_length=1)]
    cache_dir: Location

    @abstractmethod
    def manifest_path(self) -> Path:
        """The manifest, absolute. Makes it first where it is made on the spot."""

    def latent_folder(self) -> Path:
        """Where latents of audio are kept, for every run that uses this cache."""
        return self.cache_dir / "latents"


class ManifestSource(Source, frozen=True, extra="forbid"):
    """The user's own recordings."""

    manifest: Location

    def manifest_path(self) -> Path:
        """The manifest, absolute; whether it is there is found out by who reads it."""
        return self.manifest
