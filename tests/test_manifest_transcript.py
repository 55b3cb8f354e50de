"""The check of transcripts by a speech recogniser: what it compares, what it keeps, and what is said without it."""

from __future__ import annotations

import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from manifest_material import write_tone

from voxtrain.fault import InputError
from voxtrain.manifest.row import Row
from voxtrain.manifest.transcript import AsrCheck, TranscriptCheck
from voxtrain.manifest.word_errors import character_error_rate, word_error_rate

SETTINGS = AsrCheck(model="tiny", device="cpu", compute_type="int8", language=None, max_word_error_rate=0.5)


def row(text: str, samples: str | None = "0" * 32) -> Row:
    return Row("a", "/clips/a.wav", text, 1, "one", None, "one", None, None, samples=samples)


class Heard:
    """A recogniser that hears the same in every clip."""

    def __init__(self, words: str) -> None:
        self.words, self.paths = words, list[str]()

    def __call__(self, path: str) -> str:
        self.paths.append(path)
        return self.words


RATES = [
    ("Good morning, everybody.", "good morning everybody", 0.0),
    ("GOOD MORNING!", "good evening", 0.5),
    ("Good morning.", "Good morning to you all", 1.5),
    ("one two three four", "", 1.0),
    ("don\u2019t", "don't", 0.0),
    ("\uff47ood ﬁsh", "good fish", 0.0),  # widths and ligatures
    ("你好\uff0c世界", "你好 世界", 0.0),
    ("你好世界", "你号世界", 0.25),  # by characters where there are no words
    ("สวัสดี", "สวัสดี", 0.0),
    ("안녕 여러분", "안녕 여러분", 0.0),
    ("...", "hello", 1.0),
]


@pytest.mark.parametrize(("said", "heard", "rate"), RATES)
def test_word_error_rate(said: str, heard: str, rate: float) -> None:
    assert word_error_rate(said, heard) == rate


def test_character_error_rate_is_of_characters_without_blanks() -> None:
    assert character_error_rate("Can not, will not!", "cannot will not") == 0
    assert character_error_rate("good morning", "good morninG s") == 1 / 11
    assert character_error_rate("你好\uff0c世界", "你号世界") == 0.25


def test_a_clip_that_says_something_else_is_found() -> None:
    check = TranscriptCheck(SETTINGS, Heard("the weather is fine today"), None)
    assert check.finding(row("The weather was fine today.")) is None
    found = check.finding(row("He refused to leave the house."))
    assert found is not None
    assert (found.value, found.threshold) == ("1.00, heard: the weather is fine today", 0.5)


def test_what_was_heard_is_kept_by_samples_model_and_language(tmp_path: Path) -> None:
    heard = Heard("good morning")
    with TranscriptCheck(SETTINGS, heard, tmp_path / "new" / "heard.sqlite") as check:
        assert check.finding(row("Good morning.")) is None
        assert check.finding(row("Good evening to all of you.")) is not None
        check.finding(row("Good morning.", "1" * 32))
        check.finding(row("Good morning.", samples=None))
    assert len(heard.paths) == 3
    for changed, calls in (({}, 3), ({"max_word_error_rate": 0.1}, 3), ({"model": "base"}, 4), ({"language": "en"}, 5)):
        settings = SETTINGS.model_copy(update=changed)
        with TranscriptCheck(settings, heard, tmp_path / "new" / "heard.sqlite") as check:
            check.finding(row("Good morning."))
        assert len(heard.paths) == calls


def test_a_memory_that_fails_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "heard.sqlite").write_text("this is no database")
    (tmp_path / "file").touch()
    for memory in (tmp_path / "heard.sqlite", tmp_path / "file" / "heard.sqlite", tmp_path):
        with TranscriptCheck(SETTINGS, Heard("good morning"), memory) as check:
            assert check.finding(row("Good morning.")) is None
    with TranscriptCheck(SETTINGS, Heard("good morning"), tmp_path / "good.sqlite") as check:
        check.finding(row("Good morning."))
        with sqlite3.connect(tmp_path / "good.sqlite") as other:
            other.execute("DROP TABLE heard")
        assert check.finding(row("Good evening to all of you.")) is not None


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(InputError, match=r"pip install 'voxtrain\[asr\]'"):
        SETTINGS.recogniser()


class Whisper:
    """Stands for faster-whisper's model: it hears how long a clip is."""

    def __init__(self, name: str, device: str, compute_type: str) -> None:
        if name == "unknown":
            raise ValueError("Invalid model size 'unknown', expected one of:\n tiny")
        assert (device, compute_type) == ("cpu", "int8")

    def transcribe(self, wav: Any, language: str | None, condition_on_previous_text: bool) -> Any:
        assert (language, condition_on_previous_text) == (None, False)
        samples, rate_hz = soundfile.read(wav)
        parts = [types.SimpleNamespace(text=f" {len(samples)} of "), types.SimpleNamespace(text=f" {rate_hz}")]
        return iter(parts), None


def test_the_recogniser_hears_what_soundfile_decodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", types.SimpleNamespace(WhisperModel=Whisper))
    path = write_tone(tmp_path / "a.flac", 0.5, 22_050)
    assert SETTINGS.recogniser()(str(path)) == "11025 of 22050"
    soundfile.write(tmp_path / "b.wav", np.zeros((800, 3)), 8_000)
    assert SETTINGS.recogniser()(str(tmp_path / "b.wav")) == "800 of 8000"
    with pytest.raises(InputError, match="the recogniser cannot be loaded: Invalid model size 'unknown'") as told:
        SETTINGS.model_copy(update={"model": "unknown"}).recogniser()
    assert told.value.faults[0].where == "clean.asr = unknown on cpu, int8"
