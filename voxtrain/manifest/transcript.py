"""Does a clip say what its transcript says: a speech recogniser listens, and its words are compared.

It needs the extra `asr` (faster-whisper), which is imported when it is asked for. What was heard is kept in a small
database, since listening to a corpus takes hours.
"""

from __future__ import annotations

import io
import re
import sqlite3
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.row import SHOWN_LETTERS, Row
from voxtrain.manifest.rules import Finding
from voxtrain.manifest.scripts import script_of

WORD_ERROR_RATE = "word_error_rate"
UNSPACED = ("cjk", "thai", "lao", "khmer", "myanmar", "tibetan")  # scripts without blanks between words
NO_WORD = re.compile(r"[^\w\s]|_")
TABLE = "CREATE TABLE IF NOT EXISTS heard (clip TEXT PRIMARY KEY, words TEXT)"

Recogniser = Callable[[str], str]
"""The path of an audio file that can be decoded, to what is said in it."""


class AsrCheck(BaseModel, frozen=True, extra="forbid"):
    """A speech recogniser that listens to every clip, and how far its words may be from the transcript's."""

    model: str  # a name that faster-whisper knows, or a folder
    device: str
    compute_type: str
    language: str | None  # null: the recogniser guesses for each clip
    max_word_error_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    def recogniser(self) -> Recogniser:
        """Load faster-whisper. Raises InputError where it is not installed or cannot be loaded."""
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            what = f"clips are listened to with faster-whisper, which cannot be imported: {error}"
            raise InputError(Fault("clean.asr", what, "pip install 'voxtrain[asr]', or clean.asr=null")) from None
        try:
            model = WhisperModel(self.model, device=self.device, compute_type=self.compute_type)
        except Exception as error:  # of a hub, a runtime or a file, whatever they raise
            what = f"the recogniser cannot be loaded: {' '.join(str(error).split())[:SHOWN_LETTERS]}"
            remedy = "name a model that faster-whisper knows, or a folder that holds one"
            where = f"clean.asr = {self.model} on {self.device}, {self.compute_type}"
            raise InputError(Fault(where, what, remedy)) from None

        def recognise(path: str) -> str:
            segments, _ = model.transcribe(_as_wav(path), language=self.language, condition_on_previous_text=False)
            return " ".join(segment.text.strip() for segment in segments)

        return recognise


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


def word_error_rate(said: str, heard: str) -> float:
    """Words to insert, delete or replace for the one to become the other, by the number of words that were said."""
    from rapidfuzz.distance import Levenshtein

    unspaced = script_of(said) in UNSPACED
    words, others = _words(said, unspaced), _words(heard, unspaced)
    return Levenshtein.distance(words, others) / max(1, len(words))


def _words(text: str, unspaced: bool) -> list[str]:
    """Words without case, marks and widths; of scripts without blanks, characters."""
    words = NO_WORD.sub("", unicodedata.normalize("NFKC", text).casefold()).split()
    return list("".join(words)) if unspaced else words


def _as_wav(path: str) -> io.BytesIO:
    """The clip as WAV, so that the recogniser hears what is learnt from: what soundfile decodes."""
    import soundfile

    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    wav = io.BytesIO()
    soundfile.write(wav, samples.mean(axis=1), rate_hz, format="WAV", subtype="FLOAT")
    wav.seek(0)
    return wav


def _connect(path: Path) -> sqlite3.Connection | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path)
        database.execute(TABLE)
    except (sqlite3.Error, OSError):
        return None
    return database
