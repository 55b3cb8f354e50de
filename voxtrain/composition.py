"""Composition: put the option files of conf/ together with Hydra, and tell which override cannot be put in.

Hydra tells only the first override that it cannot place; here each is tried, so that all of them are told.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from voxtrain.fault import Fault

ADDED = ("recipe", "sweep")
"""Groups of changes on top of the choices, which the command line adds with a plus."""

_ABSENT = object()


def conf_folder() -> Path:
    """The folder of the option files: inside the package when installed from a wheel, beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "conf"


def known_options(group: str) -> list[str]:
    """The names of a group's options, sorted; none where there is no such group."""
    return sorted(option.stem for option in (conf_folder() / group).glob("*.yaml"))


def compose_config(overrides: Sequence[str], *, with_hydra: bool = False) -> tuple[DictConfig, list[Fault]]:
    """Compose, leaving out the overrides that cannot be composed: each of those is a fault."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            return hydra_compose("config", list(overrides), return_hydra_config=with_hydra), []
        except (HydraException, OmegaConfBaseException):
            good, faults = _sort_out(overrides)
            return hydra_compose("config", good, return_hydra_config=with_hydra), faults


def _sort_out(overrides: Sequence[str]) -> tuple[list[str], list[Fault]]:
    good: list[str] = []
    faults: list[Fault] = []
    for override in choices_first(overrides):
        try:
            hydra_compose("config", [*good, override])
            good.append(override)
        except (HydraException, OmegaConfBaseException) as error:
            faults.append(_composition_fault(override, str(error)))
    return good, faults


def _composition_fault(override: str, message: str) -> Fault:
    key, value = _key(override), override.partition("=")[2]
    if "Could not find" in message:
        found, _, options = message.partition("Config search path")[0].partition("Available options in")
        missing = found.rpartition("Could not find")[2].strip().strip("'")
        names = ", ".join(options.split()[1:]) or ", ".join(known_options(key))
        return Fault(override, f"there is no {missing}", f"choose one of: {names}")
    if key in ADDED and not override.startswith("+"):
        return Fault(override, f"a {key} is added to the choices", f"write +{key}={value}")
    if "is not in struct" in message or "Could not override" in message:
        return Fault(override, f"there is no setting {key}", _nearest(key))
    if "Ambiguous value" in message:
        what = "several values make a sweep, and this is one run"
        return Fault(override, what, f"write -m for a sweep, or \"{key}='{value}'\" for a text with a comma")
    reason = message.strip().splitlines()[0]
    return Fault(override, f"this cannot be composed: {reason}", "write key=value or group=option; see --help")


def _nearest(key: str) -> str:
    """A remedy for a key that does not exist: the option that has it, or what it may have been meant to be."""
    having = _options_with(key)
    if having:
        return f"it is a setting of {' and '.join(having)}: add {having[0]}, or leave {key} out"
    cfg = hydra_compose("config", [])
    groups = [str(group) for group in cfg if isinstance(cfg[group], DictConfig)]
    known = [f"{group}.{name}" for group in groups for name in cfg[group] if name != "_target_"]
    group = key.partition(".")[0]
    elsewhere = [f"{group}.{name}" for option in known_options(group) for name in map(str, _option(group, option))]
    near = difflib.get_close_matches(key, [*known, *elsewhere, *(str(name) for name in cfg)], n=1, cutoff=0.75)
    siblings = [name for name in known if name.startswith(f"{group}.")]
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(siblings)}" if siblings else "see --cfg job for all settings"


def _options_with(key: str) -> list[str]:
    """The options, as `group=option`, whose files hold a setting."""
    group, _, setting = key.partition(".")
    options = known_options(group) if setting else []
    found = [o for o in options if OmegaConf.select(_option(group, o), setting, default=_ABSENT) is not _ABSENT]
    return [f"{group}={option}" for option in found]


def _option(group: str, option: str) -> DictConfig:
    cfg = OmegaConf.load(conf_folder() / group / f"{option}.yaml")
    assert isinstance(cfg, DictConfig), "an option is a set of settings"
    return cfg


def unused_overrides(overrides: Sequence[str], uses: Sequence[str]) -> list[Fault]:
    """A fault for each override that a door makes no use of; `uses` names what it does: settings and whole groups.

    The choice of an option is used where anything of its group is.
    """

    def is_used(key: str) -> bool:
        return any(key == used or key.startswith(f"{used}.") or used.startswith(f"{key}.") for used in uses)

    remedy = f"leave it out; this door takes {', '.join(uses)}"
    return [Fault(o, "this door makes no use of it", remedy) for o in overrides if not is_used(_key(o))]


def choices_first(overrides: Sequence[str]) -> list[str]:
    """Choices of options before settings, as Hydra takes them: `tuning.rank=8 tuning=lora` is sound."""
    return sorted(overrides, key=lambda override: bool(_key(override).count(".")))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def apply_override(cfg: DictConfig, override: str, groups: Sequence[str]) -> list[Fault]:
    """Put `key=value` or `group=option` into a config that was read from a file; returns what is wrong with it."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        return [_composition_fault(override, str(error))]
    key, value = parsed.key_or_group, parsed.value()
    option = conf_folder() / key / f"{value}.yaml"
    if key in groups and option.is_file():
        cfg[key] = OmegaConf.load(option)
    elif parsed.is_add() or parsed.is_delete() or parsed.is_sweep_override():
        return [Fault(override, "a run folder's settings take key=value and group=option alone", "leave it out")]
    elif OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT:
        having = _options_with(key)
        remedy = f"it is a setting of {' and '.join(having)}" if having else "see config.yaml in the run folder"
        return [Fault(override, f"the run has no setting {key}", remedy)]
    else:
        OmegaConf.update(cfg, key, value)
    return []
