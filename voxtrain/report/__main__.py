"""The reports' door: python -m voxtrain.report RUN [RUN...] [out=FILE].

One run: writes its report.html. Several: compare.html beside the first, or FILE: each run at its selected step, paired
by held-out row and draw with the first run, and what each cost. Runs that were judged on other rows or draws, or with
other weights of the losses, are refused. A sweep's folder: its sweep.csv and sweep.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxtrain.door import run_door, split_arguments
from voxtrain.fault import DONE, Fault, InputError
from voxtrain.run_folder import RunFolder

USAGE = "python -m voxtrain.report RUN [RUN...] [out=FILE]"


def main(arguments: list[str]) -> int:
    """Write what was asked for, and say where it is. Raises InputError for paths that are no run folders."""
    paths, out = _checked(arguments)
    from voxtrain.report.compare import write_comparison
    from voxtrain.report.run import write_report
    from voxtrain.report.sweep import write_sweep

    if len(paths) > 1:
        written = write_comparison([RunFolder(path) for path in paths], out or paths[0].parent / "compare.html")
    elif _is_sweep(paths[0]):
        written = write_sweep(paths[0])
    else:
        written = write_report(RunFolder(paths[0]))
    print(f"The report is {written}")
    return DONE


def _checked(arguments: Sequence[str]) -> tuple[list[Path], Path | None]:
    """The folders, and where the page of several goes."""
    paths, overrides = split_arguments(arguments)
    faults = [
        Fault(given, "this door has no such setting", USAGE) for given in overrides if not given.startswith("out=")
    ]
    if not paths:
        faults.append(Fault("RUN", "no run folder was named", USAGE))
    paths = [path.resolve() for path in paths]
    for path in paths:
        if not _is_run(path) and not (len(paths) == 1 and _is_sweep(path)):
            what = (
                "this is no run folder: it has neither config.yaml nor run.json" if path.exists() else "it is not there"
            )
            faults.append(Fault(str(path), what, "name outputs/<name>/<time>"))
    faults += [
        Fault(str(path), "it is named more than once", "name each run once")
        for path in dict.fromkeys(paths)
        if paths.count(path) > 1
    ]
    outs = [Path(given.removeprefix("out=")) for given in overrides if given.startswith("out=")]
    if outs and len(paths) == 1:
        faults.append(Fault(f"out={outs[-1]}", "one run's report has its place: RUN/report.html", "leave out= away"))
    if faults:
        raise InputError(*faults)
    return paths, outs[-1].resolve() if outs else None


def _is_run(path: Path) -> bool:
    return RunFolder(path).config.is_file() or RunFolder(path).run.is_file()


def _is_sweep(path: Path) -> bool:
    from voxtrain.report.sweep import job_folders

    return path.is_dir() and not _is_run(path) and bool(job_folders(path))


if __name__ == "__main__":
    run_door(main)
