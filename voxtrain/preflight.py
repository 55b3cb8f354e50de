"""Before anything starts: which settings, which run folder, and whether the world offers what they need.

Everything here is cheap and imports no torch, so that a fault is told in the first second and nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from voxtrain.checkpoint.changes import allowed_changes, can_change, other_course
from voxtrain.composition import compose_config
from voxtrain.data.demo_speech import DemoSource
from voxtrain.data.source import ManifestSource
from voxtrain.durable import read_json
from voxtrain.fault import Fault, InputError
from voxtrain.manifest.exclude import read_exclude
from voxtrain.manifest.usable import check_head
from voxtrain.memory.disk import disk_faults, writable_faults
from voxtrain.model.released import ReleasedModel
from voxtrain.model.tiny import TinyModel
from voxtrain.optim.schedule import idle_steps
from voxtrain.ranks.devices import gpu_faults, launcher_faults, usable_gpus
from voxtrain.run_folder import RunFolder
from voxtrain.run_plan import plan_disk
from voxtrain.settings import Settings, compose, load, sound_group


@dataclass(frozen=True)
class Start:
    """What a run starts from."""

    settings: Settings
    run: RunFolder
    overrides: tuple[str, ...]  # as given on the command line
    resumes: bool


def plan_start(overrides: Sequence[str]) -> Start:
    """Settings and run folder of a command line without sweeps. Raises InputError with every fault of the settings."""
    wanted = next((o.split("=", 1)[1] for o in overrides if o.startswith("resume=")), "null")
    if wanted == "null":
        settings = compose(overrides)
        return Start(settings, RunFolder(_free_folder(overrides)), tuple(overrides), resumes=False)
    folder = _latest(overrides) if wanted == "latest" else Path(wanted)
    return resume_start(folder, overrides)


def resume_start(folder: Path, overrides: Sequence[str]) -> Start:
    """Settings of a run to go on with: its own, and on top of them what may change."""
    old = load(folder)
    run = RunFolder(folder.resolve())
    record = read_json(run.run) if run.run.is_file() else {}
    given_before = set(record.get("overrides", []))
    ours = [o for o in overrides if not o.startswith(("resume=", "hydra."))]
    new = [o for o in ours if o not in given_before or can_change(o.partition("=")[0])]
    settings = load(folder, new)
    faults = allowed_changes(old.plain, settings.plain)
    settings = _with_its_schedule(old, settings, folder, new)
    if not run.state_steps():
        faults.append(Fault(f"resume = {folder}", "the run has saved no state to go on from", "start a new run"))
    faults += _left_of_another_course(run, old, settings)
    if faults:
        raise InputError(*faults)
    return Start(replace(settings, resume=str(run.root)), run, tuple(record.get("overrides", [])), resumes=True)


def _left_of_another_course(run: RunFolder, old: Settings, new: Settings) -> list[Fault]:
    """Numbered checkpoints that the run would come by again, with other weights: each step is written once."""
    newest = max(run.state_steps(), default=0)
    beyond = [step for step in run.checkpoint_steps() if step > newest]
    if not beyond or not other_course(old.plain, new.plain):
        return []
    steps = ", ".join(map(str, beyond))
    what = f"checkpoints of step {steps} lie beyond the newest state (step {newest}) and followed the other course"
    remedy = f"move them out of {run.checkpoints} first, and {run.evaluation} too where they were judged; or keep it"
    return [Fault("train.schedule_on_resume = new", what, remedy)]


def _with_its_schedule(old: Settings, settings: Settings, folder: Path, overrides: Sequence[str]) -> Settings:
    """The settings with the steps that the schedule is laid over, where the run has grown and nobody said them."""
    said = any(o.startswith("train.schedule_steps=") for o in overrides)
    if said or settings.train.total_steps() == old.train.total_steps():
        return settings
    kept = settings.train.schedule_on_resume == "keep"
    steps = old.train.steps_of_schedule() if kept else "null"
    return load(folder, [*overrides, f"train.schedule_steps={steps}"])


def is_finished(start: Start) -> bool:
    """Whether the run has done all of its steps already."""
    record = read_json(start.run.run) if start.run.run.is_file() else {}
    return record.get("status") == "finished" and record.get("steps") == start.settings.train.total_steps()


def run_parent(overrides: Sequence[str]) -> Path:
    """The folder in which the run folders of a command line lie side by side."""
    cfg, _ = compose_config([o for o in overrides if not o.startswith("resume=")], with_hydra=True)
    return Path(str(cfg.hydra.run.dir)).parent


def _latest(overrides: Sequence[str]) -> Path:
    parent = run_parent(overrides)
    for folder in sorted(parent.glob("*/"), reverse=True):
        run = RunFolder(folder)
        if run.run.is_file() and run.config.is_file() and read_json(run.run).get("status") != "finished":
            return folder
    raise InputError(
        Fault("resume = latest", f"no unfinished run lies under {parent}", "name a run folder, or start one")
    )


def _free_folder(overrides: Sequence[str]) -> Path:
    cfg, _ = compose_config(overrides, with_hydra=True)
    folder = Path(str(cfg.hydra.run.dir)).resolve()
    if any(o.startswith("hydra.run.dir=") for o in overrides) or not folder.exists():
        return folder
    number = 2
    while folder.with_name(f"{folder.name}_{number}").exists():  # two runs within one second
        number += 1
    return folder.with_name(f"{folder.name}_{number}")


def _folder_faults(root: Path) -> list[Fault]:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return []
    can_go_on = bool(RunFolder(root).state_steps())
    remedy = f"go on with it by resume={root}, or name another folder" if can_go_on else "name another folder"
    return [Fault(f"hydra.run.dir = {root}", "this run folder exists and is not empty", remedy)]


def steps_for_nothing(settings: Settings) -> list[Fault]:
    """What is wrong with a schedule that ends at learning rate 0 before the run does: refused in a new run.

    A run that goes on may have more steps than its schedule, which it keeps: then it is told.
    """
    return idle_steps(settings.schedule, settings.train.steps_of_schedule(), settings.train.total_steps())


def world_faults(start: Start, *, in_sweep: bool = False) -> list[Fault]:
    """Faults of files, folders, devices and disk that can be found without starting anything."""
    settings = start.settings
    faults = [] if start.resumes else steps_for_nothing(settings)
    if not start.resumes:
        if not in_sweep:
            faults += _folder_faults(start.run.root)
        faults += _manifest_faults(settings.data) + _told(lambda: read_exclude(settings.clean.exclude))
    faults += _told(settings.logger.check) + settings.listening.reference_faults()
    faults += _device_faults(settings)
    faults += writable_faults(start.run.root)
    faults += disk_faults(plan_disk(settings, start.run.checkpoint_steps()), start.run.root)
    return faults + _model_faults(settings.model, may_fetch=not faults)


def file_faults(overrides: Sequence[str]) -> list[Fault]:
    """Faults of the files that unsound settings name, to be told along with the faults of the settings."""
    cfg, _ = compose_config(overrides)
    if OmegaConf.select(cfg, "resume") is not None:
        return []
    named = any(o.startswith("hydra.run.dir=") for o in overrides)
    faults = _folder_faults(_free_folder(overrides)) if named else []
    data, model = sound_group(cfg, "data"), sound_group(cfg, "model")
    if isinstance(data, ManifestSource | DemoSource):
        faults += _manifest_faults(data)
    return faults + (_model_faults(model, may_fetch=False) if isinstance(model, ReleasedModel | TinyModel) else [])


def _model_faults(model: ReleasedModel | TinyModel, *, may_fetch: bool) -> list[Fault]:
    """may_fetch: gigabytes are fetched from the hub only where nothing else is wrong."""
    fetches = isinstance(model, ReleasedModel) and model.would_fetch()
    return [] if model.path is None or (fetches and not may_fetch) else _told(model.folder)


def _manifest_faults(data: ManifestSource | DemoSource) -> list[Fault]:
    """What the first rows show; the rest is told when all of them are read."""
    manifest = data.manifest
    return [] if manifest is None else _told(lambda: check_head(manifest, data.columns, data.group_by))


def _told(look: Any) -> list[Fault]:
    try:
        look()
    except InputError as error:
        return list(error.faults)
    return []


def _device_faults(settings: Settings) -> list[Fault]:
    trainer = settings.trainer
    return launcher_faults() + (gpu_faults(trainer.devices, usable_gpus()) if trainer.accelerator == "cuda" else [])
