"""What the tests of the manifest room build their manifests from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from voxtrain.manifest.clean import CleanRules
from voxtrain.manifest.columns import Columns
from voxtrain.manifest.corpus import Gathering
from voxtrain.manifest.decide import decided
from voxtrain.manifest.evidence import Evidence
from voxtrain.manifest.formats import Line, Told
from voxtrain.manifest.judge import Job, Judge
from voxtrain.manifest.prepare import prepare
from voxtrain.manifest.row import Row
from voxtrain.manifest.sound import Sound
from voxtrain.manifest.sounds import Heard
from voxtrain.manifest.splitting.group import parse_group_by
from voxtrain.manifest.splitting.split import GroupedSplit
from voxtrain.manifest.spool import Spool
from voxtrain.run_folder import DataFolder

CONF = Path(__file__).resolve().parents[1] / "conf"
SOUND = Sound(missing=False, reason="", duration_s=1.0, sample_rate_hz=16_000, channels=1, samples=None)


def option(group: str, name: str, **changed: Any) -> dict[str, Any]:
    """The settings of one option file, some of them changed."""
    return {**_option_file(group, name), **changed}


@cache
def _option_file(group: str, name: str) -> Mapping[str, Any]:
    """Read once: to read YAML takes longer than to prepare a small manifest."""
    settings = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    del settings["_target_"]
    return settings


def clean_rules(**changed: Any) -> CleanRules:
    return CleanRules(**option("clean", "standard", **changed))


def grouped_split(**changed: Any) -> GroupedSplit:
    return GroupedSplit(**option("split", "grouped", **changed))


def columns(**names: str) -> Columns:
    """The columns of a manifest, some of them called otherwise."""
    return Columns(**{**dict.fromkeys(Columns.model_fields), **names})


def prepared(manifest: Path, out: Path, **changed: Any) -> dict[str, Any]:
    """What audit.json says of a manifest prepared into `out`, by settings some of which are changed."""
    settings: dict[str, Any] = {
        "columns": columns(),
        "group_by": "parent",
        "clean": clean_rules(max_reject_share=0.5),
        "split": grouped_split(),
        "seed": 1,
        "sound_memory": out.parent / "audio_facts.sqlite",
        "rows_per_step": 8,
        "force_write": False,
    }
    return prepare(manifest, folder=DataFolder(out), **{**settings, **changed})


class KnownSounds:
    """Sounds that need no files: each path is a file of its own."""

    def __init__(self, sounds: Mapping[str, Sound]) -> None:
        self._heard = {path: Heard(sound, place, 1, place, 1, 1) for place, (path, sound) in enumerate(sounds.items())}
        self.fresh: list[Any] = []
        self.is_broken = False

    def hear(self, paths: Iterable[str]) -> Mapping[str, Heard]:
        return {path: self._heard[path] for path in paths}

    def begin(self, paths: Iterable[str]) -> None:
        pass

    def read_alone(self) -> None:
        pass

    def close(self) -> None:
        pass


def judged(lines: list[Line], sounds: Mapping[str, Sound], clean: CleanRules, chunk_rows: int = 100) -> Evidence:
    """What is found in records whose audio sounds as it is said; grouped by `parent`."""
    grouping = parse_group_by("parent")
    judge = Judge(Job(Path("/clips"), columns(), grouping, clean, {}, None, None), KnownSounds(sounds))
    gathering, spool = Gathering(grouping.width), Spool(Path(tempfile.gettempdir()))
    for start in range(0, len(lines), chunk_rows):
        one = judge.judge(Told(lines[start : start + chunk_rows], 1.0), only_read=False)
        spool.add(one.spool)
        gathering.add(one)
    corpus = gathering.whole()
    spool.index(corpus.rows["record_bytes"], corpus.rows["found_bytes"])
    return decided(corpus, spool, clean, None)


def fired(evidence: Evidence, clean: CleanRules) -> dict[int, tuple[str, ...]]:
    """The rules that fired on each row, by its line."""
    masks = zip(evidence.corpus.rows["line"].tolist(), evidence.corpus.rows["fired"].tolist(), strict=True)
    names = list(enumerate(clean.rule_names()))
    return {line: tuple(name for place, name in names if mask >> place & 1) for line, mask in masks}


def row(**changed: Any) -> Row:
    """A row without a fault, some of it changed; paths by `audio` and `ref_audio`."""
    fields: dict[str, Any] = {
        "id": "a",
        "audio": "/clips/a.wav",
        "text": "Good morning.",
        "line": 1,
        "group": "one",
        "duration_s": None,
        "parent": "one",
        "speaker": None,
        "ref_audio": None,
    }
    fields |= changed
    reference = fields.pop("ref_audio")
    path = None if reference is None else str(reference)
    return Row(audio_path=str(fields.pop("audio")), ref_audio_path=path, **fields)


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
