"""What a multirun will do, before it does it: its jobs and its folder, as Hydra's basic sweeper will see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from voxtrain.composition import compose_config


def swept_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job: those of the command line and of a `+sweep=` option, multiplied out."""
    fixed = [o for o, parsed in _parsed(overrides) if not parsed.is_sweep_override()]
    cfg, _ = compose_config(fixed, with_hydra=True)
    params = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
    arguments = [o for o in (*params, *overrides) if not o.startswith("hydra.sweep")]
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(arguments), None)
    return [list(job) for batch in batches for job in batch]


def sweep_folder(overrides: Sequence[str]) -> Path:
    """Where the multirun's run folders go."""
    fixed = [o for o, parsed in _parsed(overrides) if not parsed.is_sweep_override()]
    cfg, _ = compose_config(fixed, with_hydra=True)
    return Path(str(cfg.hydra.sweep.dir)).resolve()


def _parsed(overrides: Sequence[str]) -> Iterator[tuple[str, Override]]:
    yield from zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True)
