"""What must lie in a VoxCPM 2 model folder. Imports no torch, so that a wrong folder is told in the first second.

config.json                                       architecture `voxcpm2`
model.safetensors | pytorch_model.bin             everything but the AudioVAE
audiovae.safetensors | audiovae.pth               the AudioVAE
tokenizer.json | tokenizer.model                  the tokenizer (upstream: voxcpm2.py, from_local)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from voxtrain.fault import Fault, InputError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
VAE_WEIGHTS = ("audiovae.safetensors", "audiovae.pth")
TOKENIZER = ("tokenizer.json", "tokenizer.model")
PATTERNS = ("*.json", "tokenizer*", *WEIGHTS, *VAE_WEIGHTS)
"""What to fetch of a model repository on the hub."""

REMEDY = "name a folder with a VoxCPM 2 model, or the hub id openbmb/VoxCPM2"


def first_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that lies in `folder`, in the order in which upstream's loader looks."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_complete(folder: Path) -> bool:
    """Whether config, weights, AudioVAE and tokenizer are all there."""
    return (folder / "config.json").is_file() and all(first_of(folder, n) for n in (WEIGHTS, VAE_WEIGHTS, TOKENIZER))


def read_architecture(folder: Path) -> dict[str, Any]:
    """The content of the folder's config.json. Raises InputError when it is missing, broken, or not VoxCPM 2's."""
    where, path = f"model.path = {folder}", folder / "config.json"
    if not folder.is_dir():
        raise InputError(Fault(where, "there is no such folder", REMEDY))
    if not path.is_file():
        raise InputError(Fault(where, "this is no model folder: it has no config.json", REMEDY))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(Fault(str(path), f"this is no JSON: {error}", "fetch the model again")) from None
    if not isinstance(config, dict) or config.get("architecture") != "voxcpm2":
        found = config.get("architecture", "none") if isinstance(config, dict) else "none"
        raise InputError(Fault(str(path), f"the architecture is {found}, and voxtrain trains voxcpm2", REMEDY))
    return config


def check_folder(folder: Path) -> dict[str, Any]:
    """Check that everything is there, and return the architecture. Raises InputError with all that is missing."""
    config = read_architecture(folder)
    missing = [names for names in (WEIGHTS, VAE_WEIGHTS, TOKENIZER) if first_of(folder, names) is None]
    if missing:
        remedy = "fetch the model again: the folder is incomplete"
        raise InputError(*(Fault(f"model.path = {folder}", f"there is no {' or '.join(n)}", remedy) for n in missing))
    return config


def differences(expected: dict[str, Any], found: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two architectures disagree, as `key: expected, found`.

    A key that one side leaves out stands at upstream's default there, and where to compute is no part of an
    architecture: neither is told.
    """
    told = []
    for key in expected.keys() & found.keys() - {"device", "dtype", "max_length"}:
        ours, theirs = expected[key], found[key]
        if isinstance(ours, dict) and isinstance(theirs, dict):
            told += differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            told.append(f"{prefix}{key}: {_short(ours)}, {_short(theirs)}")
    return sorted(told)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
