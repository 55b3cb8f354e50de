"""Settings: compose the choices in conf/, check them all at once, and hand on plain typed objects.

No DictConfig leaves this file, and this is the only place that turns a `_target_` into an object. Each option file in
conf/ is one constructor call of a pydantic class whose fields are the schema: unknown keys (in a recipe file too),
types and ranges are told together, before torch is imported and before any folder is made.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt, ValidationError, model_validator
from yaml import YAMLError

from voxtrain.composition import apply_override, choices_first, compose_config
from voxtrain.fault import Fault, InputError
from voxtrain.ranks.settings import TrainerSettings

if TYPE_CHECKING:
    from voxtrain.checkpoint.plan import CheckpointPlan
    from voxtrain.data.demo_speech import DemoSource
    from voxtrain.data.source import ManifestSource
    from voxtrain.listening.settings import ListeningSettings
    from voxtrain.manifest.clean import CleanRules
    from voxtrain.manifest.splitting.split import GroupedSplit
    from voxtrain.memory.stack import MemoryStack
    from voxtrain.metrics.loggers import CsvOnly, WandbSettings
    from voxtrain.model.released import ReleasedModel
    from voxtrain.model.tiny import TinyModel
    from voxtrain.model.tuning import FullTuning, LoraTuning
    from voxtrain.optim.adamw import AdamW
    from voxtrain.optim.schedule import WarmupConstant, WarmupCosine
    from voxtrain.validation.settings import ValidationSettings


class LossWeights(BaseModel, frozen=True, extra="forbid"):
    """Weights of the two losses in `loss/total`, and of the position at which a clip ends in the stop loss."""

    diff: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    stop: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    stop_positive: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class OutlierSettings(BaseModel, frozen=True, extra="forbid"):
    """When a step or a row stands out, and how much of its past a trace shows."""

    window: Annotated[int, Field(ge=20)]
    threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    history: PositiveInt


class TrainSettings(BaseModel, frozen=True, extra="forbid"):
    """How many rows, how many at a time, and how their losses are put together."""

    max_steps: PositiveInt | None
    max_rows: PositiveInt | None
    schedule_steps: PositiveInt | None
    schedule_on_resume: Literal["keep", "new"]
    batch_size: PositiveInt
    grad_accum: PositiveInt
    max_grad_norm: NonNegativeFloat
    loss_normalisation: Literal["per_row", "per_frame"]
    loss_weights: LossWeights
    outliers: OutlierSettings | None

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.max_steps is None and self.max_rows is None:
            raise ValueError("max_steps and max_rows are both null: the run would never end")
        return self

    def rows_per_step(self) -> int:
        """Rows in one optimizer step."""
        return self.batch_size * self.grad_accum

    def total_steps(self) -> int:
        """Optimizer steps of the whole run: the smaller of `max_steps` and what `max_rows` needs."""
        by_rows = math.inf if self.max_rows is None else math.ceil(self.max_rows / self.rows_per_step())
        return int(min(by_rows, math.inf if self.max_steps is None else self.max_steps))

    def steps_of_schedule(self) -> int:
        """The steps that the schedule is laid over."""
        return self.total_steps() if self.schedule_steps is None else self.schedule_steps


@dataclass(frozen=True)
class Settings:
    """Every choice of a run, checked."""

    name: str
    seed: int
    resume: str | None
    train: TrainSettings
    model: ReleasedModel | TinyModel
    tuning: FullTuning | LoraTuning
    data: ManifestSource | DemoSource
    clean: CleanRules
    split: GroupedSplit
    optimizer: AdamW
    schedule: WarmupCosine | WarmupConstant
    memory: MemoryStack
    trainer: TrainerSettings
    checkpoint: CheckpointPlan
    validation: ValidationSettings
    listening: ListeningSettings
    logger: CsvOnly | WandbSettings
    plain: dict[str, Any]  # what stands in config.yaml


class _Loose(BaseModel, frozen=True, extra="forbid"):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    resume: str | None


LOOSE = tuple(_Loose.model_fields)
GROUPS = tuple(f.name for f in fields(Settings) if f.name not in (*LOOSE, "plain"))


def compose(overrides: Sequence[str]) -> Settings:
    """Compose conf/ with command-line overrides (Hydra's grammar, no sweeps) and check the result.

    Raises InputError with every fault: overrides that name nothing, unknown keys, types, ranges, contradictions.
    """
    cfg, faults = compose_config(overrides)
    return _checked(cfg, faults)


def load(run: Path, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a run folder, with overrides `key=value` or `group=option` on top."""
    path = run / "config.yaml"
    if not path.is_file():
        raise InputError(Fault(str(run), "this is no run folder: it has no config.yaml", "name outputs/<name>/<time>"))
    try:
        cfg = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        what = f"the settings cannot be read: {str(error).splitlines()[0]}"
        raise InputError(Fault(str(path), what, "restore it from a copy of the run folder")) from None
    if not isinstance(cfg, DictConfig):
        raise InputError(Fault(str(path), "this is no settings file", "restore it from a copy of the run folder"))
    faults = [fault for override in choices_first(overrides) for fault in apply_override(cfg, override, GROUPS)]
    return _checked(cfg, faults)


def from_config(cfg: DictConfig) -> Settings:
    """Check a config that Hydra composed."""
    return _checked(cfg, [])


def _checked(cfg: DictConfig, faults: list[Fault]) -> Settings:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        what = str(error).splitlines()[0]
        raise InputError(*faults, Fault(error.full_key or "conf/", what, "set the value it refers to")) from None
    assert isinstance(plain, dict)
    return _from_plain({str(key): value for key, value in plain.items() if key != "hydra"}, faults)


def _from_plain(plain: dict[str, Any], faults: list[Fault]) -> Settings:
    plain, faults = _from_anywhere(plain), faults + _missing(plain)
    unknown = [key for key in plain if key not in (*LOOSE, *GROUPS)]
    for key in unknown:
        near = difflib.get_close_matches(key, (*LOOSE, *GROUPS), n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join((*LOOSE, *GROUPS))}"
        faults.append(Fault(key, "there is no such setting; look in the recipe file too", remedy))
    parts: dict[str, Any] = {}
    loose = _build(_Loose, "", {key: plain.get(key) for key in LOOSE}, faults)
    for group in GROUPS:
        node = dict(plain.get(group) or {})
        parts[group] = _build(_target(group, node, faults), group, node, faults)
    if faults:
        raise InputError(*faults)
    assert loose is not None
    settings = Settings(**loose.model_dump(), **parts, plain=plain)
    contradictions = _contradictions(settings)
    if contradictions:
        raise InputError(*contradictions)
    return settings


PATHS = (
    *(("data", key) for key in ("manifest", "cache_dir")),
    *(("model", key) for key in ("cache_dir", "path")),
    *(("clean", key) for key in ("exclude",)),
    *(("listening", key) for key in ("reference",)),
    *(("split", key) for key in ("previous", "validation_groups", "test_groups")),  # the last two may be lists
)
"""Settings that name a file or a folder."""


def _from_anywhere(plain: dict[str, Any]) -> dict[str, Any]:
    """The same with absolute paths: config.yaml is read again from other working folders. Hub ids stay as they are."""
    held = {group: dict(plain.get(group) or {}) for group, _ in PATHS}
    for group, key in PATHS:
        value = held[group].get(key)
        if isinstance(value, str) and value not in ("", ".", "???"):
            path = Path(value).expanduser()
            held[group][key] = str(path.absolute()) if key != "path" or path.is_dir() else value
    return plain | {group: node for group, node in held.items() if node}


def sound_group(cfg: DictConfig, group: str) -> BaseModel | None:
    """The settings of one group of an unchecked config; None where they are not sound."""
    try:
        node = OmegaConf.to_container(cfg[group], resolve=True)
    except OmegaConfBaseException:
        return None
    plain = {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}
    return _build(_target(group, plain, []), group, plain, [])


def _missing(node: Mapping[str, Any], prefix: str = "") -> list[Fault]:
    faults = []
    for key, value in node.items():
        if isinstance(value, Mapping):
            faults += _missing(value, f"{prefix}{key}.")
        elif value == "???":
            faults.append(Fault(f"{prefix}{key}", "this has no default and was not given", f"add {prefix}{key}=..."))
    return faults


def _target(group: str, node: dict[str, Any], faults: list[Fault]) -> type[BaseModel] | None:
    name = node.pop("_target_", None)
    try:
        found = get_class(str(name))
    except Exception:
        faults.append(Fault(f"{group}._target_ = {name}", "this names no class", f"choose an option: {group}=..."))
        return None
    return found if issubclass(found, BaseModel) else None


def _build(target: type[BaseModel] | None, group: str, node: dict[str, Any], faults: list[Fault]) -> BaseModel | None:
    if target is None:
        return None
    given = {key: value for key, value in node.items() if value != "???"}
    try:
        return target.model_validate(given)
    except ValidationError as error:
        for one in error.errors():
            if one["type"] == "missing" and node.get(str(one["loc"][0])) == "???":
                continue  # told already as a setting without a value
            faults.append(_value_fault(group, target, dict(one)))
        return None


def _value_fault(group: str, target: type[BaseModel], error: Mapping[str, Any]) -> Fault:
    key = ".".join([group, *(str(part) for part in error["loc"])]).strip(".")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), list(target.model_fields), n=1)
        remedy = f"did you mean {near[0]}?" if near else f"known are {', '.join(target.model_fields)}"
        return Fault(f"{key} = {error['input']}", "there is no such setting; look in the recipe file too", remedy)
    if error["type"] == "missing":
        return Fault(key, "this is not set", "choose a complete option of its group")
    reason = str(error["msg"]).removeprefix("Value error, ")
    where = key if isinstance(error["input"], Mapping) else f"{key} = {error['input']}"
    return Fault(where, reason, "give a value that fits; conf/ explains each setting")


def _contradictions(settings: Settings) -> list[Fault]:
    """Pairs of choices that cannot work together, each with an alternative."""
    faults = []
    if settings.trainer.accelerator == "cpu" and settings.memory.autocast:
        faults.append(
            Fault(
                "trainer.accelerator = cpu with memory.autocast = true",
                "bf16 autocast is for CUDA",
                "choose memory=cpu, or memory.autocast=false",
            )
        )
    if settings.tuning.lora_config() and settings.memory.frozen == "bf16" and not settings.memory.autocast:
        faults.append(
            Fault(
                "tuning = lora with memory.frozen = bf16 and memory.autocast = false",
                "adapters are fp32, and without autocast they cannot be multiplied with bf16",
                "set memory.frozen=fp32, or on a GPU memory.autocast=true",
            )
        )
    if settings.trainer.devices > 1 and settings.memory.gradients == "host":
        where, what = "trainer.devices > 1 with memory.gradients = host", "ranks add up gradients on the cards"
        faults.append(Fault(where, what, "set trainer.devices=1, or memory.gradients=card (memory=16gb)"))
    processes, rows = settings.trainer.devices, settings.train.rows_per_step()
    if processes > rows:
        what = f"a step has {rows} rows (train.batch_size x train.grad_accum): some processes would never have one"
        faults.append(Fault(f"trainer.devices = {processes}", what, f"say trainer.devices={rows}, or more rows a step"))
    if settings.train.loss_weights.diff == 0 and settings.train.loss_weights.stop == 0:
        faults.append(Fault("train.loss_weights", "both weights are 0: nothing would be learnt", "raise one of them"))
    return faults
