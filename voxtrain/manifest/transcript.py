"""Does a clip say what its transcript says: a speech recogniser listens, and its words are compared.

What was heard is kept in a small database, since listening to a corpus takes hours.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field

from voxtrain.manifest.recogniser import Recogniser, load_recogniser
from voxtrain.manifest.row import SHOWN_LETTERS, Row
from voxtrain.manifest.rules import Finding
from voxtrain.manifest.word_errors import word_error_rate

WORD_ERROR_RATE = "word_error_rate"
TABLE = "CREATE TABLE IF NOT EXISTS heard (clip TEXT PRIMARY KEY, words TEXT)"


class AsrCheck(BaseModel, frozen=True, extra="forbid"):
    """A speech recogniser that listens to every clip, and how far its words may be from the transcript's."""

    model: str  # a name that faster-whisper knows, or a folder
    device: str
    compute_type: str
    language: str | None  # null: the recogniser guesses for each clip
    max_word_error_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    def recogniser(self) -> Recogniser:
        """Load faster-whisper. Raises InputError where it is not installed or cannot be loaded."""
        return load_recogniser(self.model, self.device, self.compute_type, self.language, "clean.asr")


class TranscriptCheck:
    """Hears rows, one at a time, in one process. Close it at the end, or use it in a `with`."""

    def __init__(self, settings: AsrCheck, recognise: Recogniser, memory: Path | None) -> None:
        """`memory`: the database of what was heard; None: nothing is kept. One that fails is done without."""
        self._settings, self._recognise = settings, recognise
        self._database = None if memory is None else _connect(memory)

    def finding(self, row: Row) -> Finding | None:
        """What is wrong with the transcript of a row whose audio can be decoded, or None.

        Value: the word error rate (of scripts without blanks, that of characters) and what was heard.
        """
        clip = None if row.samples is None else f"{self._settings.model} {self._settings.language} {row.samples}"
        heard = self._remembered(clip)
        if heard is None:
            heard = self._recognise(row.audio_path)
            self._remember(clip, heard)
        rate = word_error_rate(row.text, heard)
        if rate <= self._settings.max_word_error_rate:
            return None
        return Finding(f"{rate:.2f}, heard: {heard[:SHOWN_LETTERS]}", self._settings.max_word_error_rate)

    def _remembered(self, clip: str | None) -> str | None:
        if self._database is None or clip is None:
            return None
        try:
            found = self._database.execute("SELECT words FROM heard WHERE clip = ?", (clip,)).fetchone()
        except sqlite3.Error:
            self._database = None
            return None
        return None if found is None else str(found[0])

    def _remember(self, clip: str | None, heard: str) -> None:
        if self._database is None or clip is None:
            return
        try:
            with self._database:
                self._database.execute("INSERT OR REPLACE INTO heard VALUES (?, ?)", (clip, heard))
        except sqlite3.Error:
            self._database = None

    def close(self) -> None:
        """Let go of the database."""
        if self._database is not None:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(path: Path) -> sqlite3.Connection | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path)
        database.execute(TABLE)
    except (sqlite3.Error, OSError):
        return None
    return database
