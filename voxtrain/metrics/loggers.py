"""The settings of the config group `logger`: what keeps the run's figures beside metrics.csv.

Imports neither torch nor wandb: the settings check reads this module before anything is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from voxtrain.fault import Fault, InputError
from voxtrain.metrics.wandb_page import WandbPage
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    from voxtrain.metrics.wandb_log import WandbLog


class CsvOnly(BaseModel, frozen=True, extra="forbid"):
    """metrics.csv in the run folder, which is always written, and nothing more."""

    def check(self) -> None:
        """There is nothing that could be missing."""

    def callback(self, run: RunFolder, plain_config: Mapping[str, Any], name: str) -> None:
        """Nothing has to listen to training."""

    def log_validation(self, run: RunFolder, plain_config: Mapping[str, Any], name: str) -> None:
        """evaluation/checkpoints.csv has the figures already."""


class WandbSettings(WandbPage, frozen=True, extra="forbid"):
    """Weights & Biases, fed from metrics.csv."""

    def callback(self, run: RunFolder, plain_config: Mapping[str, Any], name: str) -> WandbLog:
        """What sends each step. Raises InputError where wandb is missing, or knows no account in online mode."""
        self.check()
        from voxtrain.metrics.wandb_log import WandbLog

        return WandbLog(self, run, plain_config, name)

    def log_validation(self, run: RunFolder, plain_config: Mapping[str, Any], name: str) -> None:
        """Send the held-out losses of all judged checkpoints to the run's page. Raises InputError like `callback`."""
        self.check()
        from voxtrain.metrics.wandb_log import log_validation

        log_validation(self, run, plain_config, name)

    def check(self) -> None:
        """Raise InputError where wandb is not installed, or knows no account in online mode. Opens no connection."""
        if importlib.util.find_spec("wandb") is None:
            raise InputError(
                Fault(
                    "logger = wandb",
                    "the package wandb is not installed",
                    "pip install wandb, or choose logger=csv",
                )
            )
        if self.mode == "online" and not _has_account():
            raise InputError(
                Fault(
                    "logger.mode = online",
                    "Weights & Biases knows no account on this machine",
                    "run `wandb login`, or set WANDB_API_KEY, or choose logger.mode=offline",
                )
            )


def _has_account() -> bool:
    import wandb

    return bool(wandb.login(prompt=False, verify=False))
