"""The settings of the config group `data`: which manifest, what its rows are grouped by, where caches lie.

Imports no torch. `DemoSource`, which makes its own speech, is in demo_speech.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from voxtrain.manifest.columns import Columns
from voxtrain.manifest.splitting.group import parse_group_by


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _named(path: Path) -> Path:
    if str(path) in ("", "."):
        raise ValueError("this names nothing")
    return path


Location = Annotated[Path, AfterValidator(_named), AfterValidator(_absolute)]
"""A path that the user wrote: `~` is expanded, and a relative one starts at the working directory."""


def _groups(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    parse_group_by(value)
    return value


GroupBy = Annotated[str | tuple[str, ...], AfterValidator(_groups)]
"""A column, several columns, `row`, or a regular expression on the path; see manifest/splitting/group.py."""


class Source(BaseModel, ABC, frozen=True, extra="forbid"):
    """Where rows come from."""

    group_by: GroupBy
    columns: Columns
    cache_dir: Location

    @abstractmethod
    def manifest_path(self) -> Path:
        """The manifest, absolute. Makes it first where it is made on the spot."""

    def latent_folder(self) -> Path:
        """Where latents of audio are kept, for every run that uses this cache."""
        return self.cache_dir / "latents"

    def sound_memory(self) -> Path:
        """The database of what is known of audio files, for every audit that uses this cache."""
        return self.cache_dir / "audio_facts.sqlite"


class ManifestSource(Source, frozen=True, extra="forbid"):
    """The user's own recordings."""

    manifest: Location

    def manifest_path(self) -> Path:
        """The manifest, absolute; whether it is there is found out by who reads it."""
        return self.manifest
