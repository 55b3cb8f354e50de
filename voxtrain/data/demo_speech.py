"""The settings of the demo's speech, and its making: a folder of WAV files with a manifest as dirty as real ones are.

Imports no torch. What is said is in demo_rows.py; eSpeak NG says it (espeak.py), from the package espeakng-loader.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Self

import soundfile
from pydantic import Field, model_validator

from voxtrain.data import espeak
from voxtrain.data.demo_rows import DemoRow, demo_rows
from voxtrain.data.source import Location, Source
from voxtrain.durable import folder_aside, write_jsonl
from voxtrain.fault import Fault, InputError

MANIFEST, LABELS, AUDIO = "manifest.jsonl", "labels.jsonl", "audio"
PATIENCE_S = 300  # 200 utterances take two seconds


class DemoSource(Source, frozen=True, extra="forbid"):
    """Speech made on the spot, or the user's own recordings where `manifest` names them."""

    manifest: Location | None
    utterances: Annotated[int, Field(ge=1, le=10_000)]
    parents: Annotated[int, Field(ge=1, le=1_000)]

    @model_validator(mode="after")
    def _every_parent_speaks(self) -> Self:
        if self.utterances < self.parents:
            raise ValueError(f"{self.utterances} utterances are too few for {self.parents} parents")
        return self

    def manifest_path(self) -> Path:
        """The manifest, absolute; the speech is made once and kept in the cache, beside its labels.

        Raises InputError when eSpeak NG is missing or fails, or the cache cannot be written.
        """
        if self.manifest is not None:
            return self.manifest
        rows = demo_rows(self.utterances, self.parents)
        folder = self.cache_dir / f"demo_speech_{_key(rows)}"
        try:
            with _alone(self.cache_dir):
                if not _is_complete(folder, rows):
                    _make(folder, rows)
        except OSError as error:
            remedy = "set data.cache_dir to a folder with room that can be written"
            raise InputError(Fault(f"data.cache_dir = {self.cache_dir}", str(error), remedy)) from None
        return folder / MANIFEST


def _key(rows: Sequence[DemoRow]) -> str:
    """Stands for everything that the speech is made from. Raises InputError when there is nothing to make it with."""
    try:
        synthesizer = version("espeakng-loader")
    except PackageNotFoundError:
        remedy = "pip install 'voxtrain[demo]', or name your own recordings: data.manifest=FILE"
        what = "speech is made with eSpeak NG, and the package espeakng-loader is not installed"
        raise InputError(Fault("data = demo", what, remedy)) from None
    code = Path(espeak.__file__).read_text(encoding="utf-8")
    made_from = json.dumps([synthesizer, code, [asdict(row) for row in rows]])
    return hashlib.sha256(made_from.encode()).hexdigest()[:12]


def _is_complete(folder: Path, rows: Sequence[DemoRow]) -> bool:
    """Whether nobody has deleted a part of it since it was made."""
    files = [folder / MANIFEST, folder / LABELS, *(folder / _audio_name(row) for row in rows)]
    return all(path.is_file() for path in files)


def _make(folder: Path, rows: Sequence[DemoRow]) -> None:
    with folder_aside(folder) as aside:
        (aside / AUDIO).mkdir()
        _speak(aside, rows)
        write_jsonl(aside / MANIFEST, [_record(aside, row) for row in rows])
        write_jsonl(aside / LABELS, [{"id": row.id, "label": row.label} for row in rows])


def _speak(folder: Path, rows: Sequence[DemoRow]) -> None:
    utterances = [
        {
            "file": _audio_name(row),
            "text": row.said,
            "voice": row.voice.name,
            "words_per_minute": row.voice.words_per_minute,
            "pitch": row.voice.pitch,
            "range": row.voice.range,
            "cut_ms": row.cut_ms,
        }
        for row in rows
    ]
    job = json.dumps({"folder": str(folder), "utterances": utterances})
    command = [sys.executable, "-P", str(Path(espeak.__file__))]  # -P: its folder is no place to import from
    try:
        subprocess.run(command, input=job, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    except subprocess.CalledProcessError as error:
        raise InputError(_no_speech((error.stderr.strip().splitlines() or [str(error)])[-1])) from None
    except subprocess.TimeoutExpired as error:
        raise InputError(_no_speech(str(error))) from None


def _no_speech(why: str) -> Fault:
    remedy = "pip install --force-reinstall espeakng-loader, or name your own recordings: data.manifest=FILE"
    return Fault("data = demo", f"eSpeak NG made no speech: {why}", remedy)


def _record(folder: Path, row: DemoRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "audio": _audio_name(row),
        "text": row.text,
        "duration": soundfile.info(folder / _audio_name(row)).duration,
        "speaker": row.voice.name.removeprefix("gmw/"),
        "parent": row.voice.parent,
    }


def _audio_name(row: DemoRow) -> str:
    return f"{AUDIO}/{row.id}.wav"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock that only one process on this machine can hold: the jobs of a sweep start together."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".demo_speech.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
