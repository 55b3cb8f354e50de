"""The front door: compose and check, then let Hydra start the run, and exit with the worst code of all that ran.

Every fault is told before Hydra makes a folder. Flags that only look (--help, --cfg job, shell completion) go straight
to Hydra. Nothing here imports torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from voxtrain.composition import conf_folder
from voxtrain.door import tell
from voxtrain.fault import DONE, FAILED, Fault, InputError

if TYPE_CHECKING:
    from voxtrain.preflight import Start
    from voxtrain.settings import Settings

LOOKING = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
MULTIRUN = ("-m", "--multirun")


def main() -> None:
    """Entry of `python -m voxtrain` and of the console script."""
    arguments = sys.argv[1:]
    if any(argument.startswith(LOOKING) and not argument.startswith(MULTIRUN) for argument in arguments):
        enter_hydra(arguments, _never)
        return
    try:
        code = sweep(arguments) if _is_sweep(arguments) else single(arguments)
    except InputError as error:
        code = tell(error)
    except (HydraException, OmegaConfBaseException) as error:  # what no check could lay at one setting's door
        what = " ".join(str(error).split("\nSee ")[0].split())
        code = tell(InputError(Fault("the command line", what, "write key=value or group=option; see --help")))
    sys.exit(code)


def _is_sweep(arguments: Sequence[str]) -> bool:
    return any(a in MULTIRUN or a.upper() == "HYDRA.MODE=MULTIRUN" for a in arguments)


def single(arguments: Sequence[str]) -> int:
    """Check and start one run; returns its exit code, or that of its post-hoc process where that is worse."""
    from voxtrain.checkpoint.stop import interrupted_by_signals
    from voxtrain.restart import requeue_if_warned, restarted

    overrides = _overrides(arguments)
    start = restarted(overrides) or _planned(overrides)
    try:
        with interrupted_by_signals():
            code = _checked_run(start)
    except KeyboardInterrupt as interrupt:
        print(f"\n{str(interrupt) or 'interrupted'}", file=sys.stderr)
        code = FAILED
    requeue_if_warned(start, code)
    return code


def _checked_run(start: Start) -> int:
    from voxtrain.preflight import is_finished, world_faults
    from voxtrain.validation.launch import outcome_code

    faults = world_faults(start)
    if faults:
        raise InputError(*faults)
    if start.resumes and is_finished(start):
        print(f"{start.run.root} is finished: all {start.settings.train.total_steps()} steps are done.")
        return _after_training(start)
    _prepare_process(start.settings)
    codes: list[int] = []

    def job(_: DictConfig) -> dict[str, Any]:
        from voxtrain.train import run_to_end

        codes.append(run_to_end(start, in_sweep=False))
        return {"run": str(start.run.root), "exit_code": codes[0]}

    enter_hydra([*_for_hydra(start), f"hydra.run.dir='{start.run.root}'"], job)
    return outcome_code(start.run.root) if codes == [DONE] else _worst(codes or [FAILED])


def _after_training(start: Start) -> int:
    """Go on with what follows training, where it was interrupted or failed."""
    from voxtrain.validation.launch import has_ended_well, run_chain

    if start.settings.validation.when == "never" or has_ended_well(start.run.root):
        return DONE
    print("What follows training has not ended well yet: once more.")
    return run_chain(start.run.root)


def _for_hydra(start: Start) -> list[str]:
    """What Hydra has to know of a run whose settings are checked already; a resumed run's are its own config.yaml."""
    if start.resumes:
        return [o for o in start.overrides if o.startswith("hydra")]
    return [o for o in start.overrides if not o.startswith("hydra.run.dir=")]


def sweep(arguments: Sequence[str]) -> int:
    """Check every job of a multirun before the first starts; returns the worst exit code of all."""
    from voxtrain.preflight import world_faults
    from voxtrain.sweep_jobs import sweep_folder, swept_jobs

    flags = [a for a in arguments if a.startswith("-")]
    overrides = _overrides([a for a in arguments if a not in MULTIRUN])
    if any(o.startswith("resume=") and o != "resume=null" for o in overrides):
        raise InputError(
            Fault("resume with -m", "a sweep cannot be resumed as one", "resume its run folders one by one")
        )
    folder = sweep_folder(overrides)
    faults: dict[Fault, None] = dict.fromkeys(_sweep_folder_faults(folder))
    jobs = swept_jobs(overrides)
    for job_overrides in jobs:
        try:
            start = _planned(job_overrides)
            found = world_faults(start, in_sweep=True)
        except InputError as error:
            found = list(error.faults)
        faults |= dict.fromkeys(found)
    if faults:
        raise InputError(*faults)
    _prepare_process(start.settings)
    from voxtrain.train import sweep_job

    kept = [o for o in overrides if not o.startswith("hydra.sweep.dir=")]
    enter_hydra([*flags, *kept, f"hydra.sweep.dir='{folder}'"], sweep_job)
    return _sweep_code(folder, len(jobs))


def _sweep_folder_faults(folder: Path) -> list[Fault]:
    """A second sweep in the folder of a first would train on beside checkpoints and verdicts that are not its own."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    remedy = "name another folder, or resume its run folders one by one"
    return [Fault(f"hydra.sweep.dir = {folder}", "this folder exists and is not empty", remedy)]


def _overrides(arguments: Sequence[str]) -> list[str]:
    flags = [a for a in arguments if a.startswith("-") and a not in MULTIRUN]
    if flags:
        raise InputError(*(Fault(flag, "the front door has no such flag", "see --help") for flag in flags))
    return list(arguments)


def _planned(overrides: Sequence[str]) -> Start:
    from voxtrain.preflight import file_faults, plan_start

    try:
        return plan_start(overrides)
    except InputError as error:
        # Faults of the values come with those of the files that stand beside them: one telling, not two.
        raise InputError(*error.faults, *file_faults(overrides)) from None


def _prepare_process(settings: Settings) -> None:
    """Set what must stand before torch is imported; in a sweep, what the last job asks for."""
    os.environ |= {**settings.memory.environment(), **settings.trainer.environment()}


def enter_hydra(arguments: Sequence[str], job: Any) -> None:
    """Hand over to Hydra with these arguments."""
    import hydra

    sys.argv = [sys.argv[0], *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(job)()


def _never(cfg: DictConfig) -> None:
    raise AssertionError("a flag that only looks started a job")


def _sweep_code(folder: Path, jobs: int) -> int:
    from voxtrain.durable import read_json
    from voxtrain.validation.launch import outcome_code

    records = {path.parent: read_json(path) for path in folder.glob("*/run.json")}
    codes = [FAILED if record["exit_code"] is None else int(record["exit_code"]) for record in records.values()]
    codes += [FAILED] * (jobs - len(records))
    return _worst([*codes, *(outcome_code(run) for run, record in records.items() if record["exit_code"] == DONE)])


def _worst(codes: Sequence[int]) -> int:
    """A failure is worse than wrong inputs, those than a stop with its state saved."""
    return max(codes, key=[0, 3, 2, 1].index)


if __name__ == "__main__":
    main()
