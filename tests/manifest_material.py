"""What the tests of the manifest room build their manifests from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from voxtrain.manifest.clean import CleanRules
from voxtrain.manifest.header import Header
from voxtrain.manifest.row import Row
from voxtrain.manifest.split import GroupedSplit

CONF = Path(__file__).resolve().parents[1] / "conf"
SOUND = Header(1.0, missing=False, reason="")


def option(group: str, name: str, **changed: Any) -> dict[str, Any]:
    """The settings of one option file, some of them changed."""
    settings = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    del settings["_target_"]
    return {**settings, **changed}


def clean_rules(**changed: Any) -> CleanRules:
    return CleanRules(**option("clean", "standard", **changed))


def grouped_split(**changed: Any) -> GroupedSplit:
    return GroupedSplit(**option("split", "grouped", **changed))


def row(**changed: Any) -> Row:
    """A row without a fault, some of it changed."""
    fields: dict[str, Any] = {
        "id": "a",
        "audio": Path("/clips/a.wav"),
        "text": "Good morning.",
        "line": 1,
        "group": "one",
        "duration_s": None,
        "parent": "one",
        "speaker": None,
        "ref_audio": None,
    }
    return Row(**{**fields, **changed})


def write_lines(path: Path, records: Iterable[Mapping[str, Any] | str]) -> Path:
    """A JSONL manifest; a string stands as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_tone(path: Path, seconds: float, rate_hz: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.2 * np.sin(np.arange(round(seconds * rate_hz)) * 0.1)
    soundfile.write(path, wave.astype(np.float32), rate_hz)
    return path
