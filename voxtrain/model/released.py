"""The settings of a released VoxCPM 2: a local folder, or a model of the Hugging Face hub. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, model_validator

from voxtrain.fault import Fault, InputError
from voxtrain.model.folder import PATTERNS, check_folder, differences, is_complete
from voxtrain.model.size import parameter_counts

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ReleasedModel(BaseModel, frozen=True, extra="forbid"):
    """Where the model's folder is, and the architecture that plans count on."""

    path: str
    architecture: dict[str, Any]

    @model_validator(mode="after")
    def _can_be_counted(self) -> Self:
        count(self.architecture)
        return self

    def would_fetch(self) -> bool:
        """Whether `folder` may ask the hub for gigabytes: `path` is a hub id, and nobody said to work offline."""
        from huggingface_hub import constants

        return self._is_hub_id() and not constants.HF_HUB_OFFLINE

    def _is_hub_id(self) -> bool:
        return not Path(self.path).expanduser().is_dir() and HUB_ID.fullmatch(self.path) is not None

    def folder(self) -> Path:
        """The model's folder, fetched from the hub if it must be.

        Raises InputError when it is not there, cannot be fetched, is incomplete, or is of another architecture.
        """
        folder = _from_hub(self.path) if self._is_hub_id() else Path(self.path).expanduser().resolve()
        return agreed(folder, self.architecture)


def count(architecture: dict[str, Any]) -> dict[str, int]:
    """Parameter counts; raises ValueError, as settings classes want it, where the architecture lacks a key."""
    try:
        return parameter_counts(architecture)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the architecture is incomplete: {error} is missing or of the wrong kind") from None


def agreed(folder: Path, architecture: dict[str, Any]) -> Path:
    """`folder`, once it is complete and its config.json agrees with `architecture`; InputError otherwise."""
    found = check_folder(folder)
    told = differences(architecture, found)
    if told:
        more = f", and {len(told) - 5} more" if len(told) > 5 else ""
        raise InputError(
            Fault(
                f"model.path = {folder}",
                f"config.json disagrees with model.architecture (key: setting, folder): {'; '.join(told[:5])}{more}",
                "name a folder of this architecture, or the model option that fits it (model=voxcpm2, model=tiny)",
            )
        )
    return folder


def _from_hub(name: str) -> Path:
    """The newest snapshot that is already here, else a fresh one: a run never changes its base model in between."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = list(PATTERNS)
    try:
        here = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if is_complete(here):
            return here
    except (LocalEntryNotFoundError, OSError):
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            Fault(
                f"model.path = {name}",
                f"there is no such folder here, and the hub's model of this name cannot be fetched: {first}",
                f"on a machine with a network run `hf download {name}`, copy the folder here and set model.path=FOLDER;"
                " or try +recipe=demo, which needs no weights",
            )
        ) from None
