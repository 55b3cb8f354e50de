"""`python -m voxtrain.doctor [--card CARD] [--json]`: what this machine can run, what is missing, and how to mend it.

Of a GPU that is here, or of the card that is named, it says which recipes fit. Exit code 0, or 1 when something that
every run needs is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from voxtrain.door import run_door
from voxtrain.fault import DONE, FAILED, Fault, InputError
from voxtrain.memory.card import size_gib

GIB = 2**30
FULL_STATE_GIB = 13.0
"""A resumable state of full fine-tuning with 8-bit optimizer state; two of them stand while one replaces the other."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    ok: bool
    required: bool  # every run needs it
    found: str
    remedy: str  # how to mend it; empty where nothing is wrong


def examine() -> list[Finding]:
    """Look at everything; nothing raises."""
    look: list[Callable[[], Finding | list[Finding]]] = [
        _python, _torch, _torchaudio, _voxcpm, _bitsandbytes, _cuda, _gpus, _memory, _disk, _extras,
    ]  # fmt: skip
    findings: list[Finding] = []
    for one in look:
        found = one()
        findings += found if isinstance(found, list) else [found]
    return findings


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return _finding("python", ok, True, sys.version.split()[0], "use Python 3.11 or 3.12")


def _torch() -> Finding:
    return _importable("torch", "torch", "pip install voxtrain -c constraints.txt")


def _torchaudio() -> Finding:
    """Torchaudio and torch are one pair: beside another torch, `import torchaudio` fails, and voxcpm imports it."""
    pair = [(_version(name) or "missing") for name in ("torch", "torchaudio")]
    same = pair[0].split("+")[0].split(".")[:2] == pair[1].split("+")[0].split(".")[:2]
    broken = _import_error("torchaudio")
    found = f"torch {pair[0]}, torchaudio {pair[1]}" + (f": {broken}" if broken else "")
    remedy = "pip install torch==2.11.0 torchaudio==2.11.0, from the same index"
    return _finding("torch and torchaudio are a pair", same and broken is None, True, found, remedy)


def _voxcpm() -> Finding:
    return _importable("voxcpm", "voxtrain.model.upstream", "pip install voxcpm==2.0.3", package="voxcpm")


def _bitsandbytes() -> Finding:
    remedy = "pip install bitsandbytes, or train with memory.state=fp32"
    return _importable("bitsandbytes (8-bit optimizer state)", "bitsandbytes", remedy, package="bitsandbytes")


def _cuda() -> Finding:
    remedy = "install an NVIDIA driver that fits; the CPU runs +recipe=demo"
    if _import_error("torch") is not None:
        return _finding("CUDA", False, False, "torch cannot be imported", "mend torch first")
    import torch

    usable = torch.cuda.is_available()
    built = torch.version.cuda
    found = f"CUDA {built}, {'usable' if usable else 'no usable GPU'}" if built else "torch was built without CUDA"
    return _finding("CUDA", usable, False, found, remedy)


def _gpus() -> list[Finding]:
    import pynvml

    try:
        cards = _cards()
    except pynvml.NVMLError as error:
        return [_finding("NVIDIA driver", False, False, str(error), "install the driver, where there is a GPU")]
    return [
        Finding(f"GPU {index}", True, False, f"{name}, {total:.2f} GiB ({free:.2f} free), driver {driver}", "")
        for index, (name, total, free, driver) in enumerate(cards)
    ]


def _cards() -> list[tuple[str, float, float, str]]:
    """(name, GiB, GiB free, version of the driver) of each GPU. Raises NVMLError."""
    import pynvml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    told = [(pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)) for handle in handles]
    driver = pynvml.nvmlSystemGetDriverVersion()
    return [(str(name), memory.total / GIB, memory.free / GIB, str(driver)) for name, memory in told]


def _smallest_gpu_gib() -> float | None:
    import pynvml

    try:
        return min((total for _, total, _, _ in _cards()), default=None)
    except pynvml.NVMLError:
        return None


def recipe_findings(card_gib: float) -> list[Finding]:
    """Whether each recipe for GPUs fits a card, as planned."""
    from voxtrain.progress import told
    from voxtrain.run_plan import recipe_plans, recipes_for_cards

    names = recipes_for_cards()
    found = []
    for name, plan in told(recipe_plans(names, card_gib), len(names), "planning recipes"):
        spare = plan.spare_gib()
        told_spare = f"{spare:.1f} to spare" if plan.fits else f"{-spare:.1f} too much"
        host = f", and {plan.host_gib:.1f} GiB of host memory" if plan.host_gib >= 0.05 else ""
        words = f"predicted peak {plan.peak_gib:.1f} GiB on {card_gib:.1f}, {told_spare}{host}"
        remedy = f"`python -m voxtrain.memory +recipe={name} --card {card_gib * 1024:.0f}` says what would save most"
        found.append(_finding(f"recipe {name}", plan.fits, False, words, remedy))
    return found


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} available"
    remedy = "full fine-tuning reads 4.3 GiB of weights and pages up to 4.4 GiB of state to it; the demo needs 2"
    return _finding("RAM", memory.available >= 12 * GIB, False, found, remedy)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / GIB
    remedy = "full fine-tuning needs 4.3 GiB for every numbered checkpoint and 26 for its state; see voxtrain.memory"
    return _finding("free disk here", free >= 2 * FULL_STATE_GIB, False, f"{free:.1f} GiB", remedy)


def _extras() -> list[Finding]:
    wanted = {
        "extra demo (speech made on the spot)": ("espeakng_loader", "demo"),
        "extra asr (word error rates)": ("faster_whisper", "asr"),
        "extra voice (similarity to the speaker)": ("resemblyzer", "voice"),
        "extra sweep (joblib)": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
        "extra sweep (Slurm)": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
        "wandb": ("wandb", ""),
    }
    found = []
    for name, (module, extra) in wanted.items():
        there = _exists(module)
        remedy = f"pip install 'voxtrain[{extra}]'" if extra else "pip install wandb"
        found.append(_finding(name, there, False, "installed" if there else "not installed", remedy))
    return found


def _finding(name: str, ok: bool, required: bool, found: str, remedy: str) -> Finding:
    return Finding(name, ok, required, found, "" if ok else remedy)


def _importable(name: str, module: str, remedy: str, package: str | None = None) -> Finding:
    error = _import_error(module)
    version = _version(package or module) or "not installed"
    return _finding(name, error is None, True, version if error is None else f"{version}: {error}", remedy)


def _import_error(module: str) -> str | None:
    """Why a module cannot be imported, in one line; None where it can. What it prints meanwhile is dropped."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _no_stderr():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # a broken package may raise anything
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _card(name: str) -> float:
    try:
        return size_gib(name)
    except ValueError as error:
        raise InputError(Fault(f"--card {name}", str(error), "give a card that voxtrain knows")) from None


def is_broken(findings: list[Finding]) -> bool:
    """Whether something that every run needs is missing."""
    return any(finding.required and not finding.ok for finding in findings)


def main(arguments: list[str]) -> int:
    """Print the findings; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m voxtrain.doctor", description=__doc__)
    parser.add_argument("--card", help="24gb, a card's name such as 4090, or MiB (without: the smallest GPU here)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args(arguments)
    card_gib = _smallest_gpu_gib() if given.card is None else _card(given.card)
    findings = examine()
    if card_gib is not None and not is_broken(findings):
        findings += recipe_findings(card_gib)
    if given.json:
        print(json.dumps({"ok": not is_broken(findings), "findings": [asdict(one) for one in findings]}, indent=2))
    else:
        for finding in findings:
            state = "ok     " if finding.ok else "BROKEN " if finding.required else "no     "
            print(f"{state}  {finding.name}: {finding.found}")
            if finding.remedy:
                print(f"         -> {finding.remedy}")
    return FAILED if is_broken(findings) else DONE


if __name__ == "__main__":
    run_door(main)
