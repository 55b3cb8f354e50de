"""Rows of the longest clips that a run may train on: noise in the rhythm of syllables, with as much text as speech has.

What a step costs and holds depends on lengths alone, and with random weights there is nothing to learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from voxtrain.durable import write_jsonl

SAMPLE_RATE = 16_000
CHARACTERS_PER_SECOND = 15
SYLLABLES_PER_SECOND = 4.0
WORDS = (
    "the reading of long lines by one voice in an even pace with hardly a rest between words fills every position "
    "that a row may have while rows of other lengths leave some of them free"
)


def write_clips(folder: Path, count: int, seconds: float) -> Path:
    """`count` clips of `seconds` each, every one of a recording of its own. Returns the manifest."""
    folder.mkdir(parents=True)
    records = []
    for place in range(count):
        audio = folder / f"clip_{place}.wav"
        soundfile.write(audio, _noise(place, seconds), SAMPLE_RATE, subtype="PCM_16")
        text = _text(place, round(seconds * CHARACTERS_PER_SECOND))
        records.append({"id": audio.stem, "audio": str(audio), "text": text, "parent": f"recording_{place}"})
    manifest = folder / "rows.jsonl"
    write_jsonl(manifest, records)
    return manifest


def texts(count: int, seconds: float) -> list[str]:
    """The texts of `write_clips`, for a tokenizer to learn."""
    return [_text(place, round(seconds * CHARACTERS_PER_SECOND)) for place in range(count)]


def _noise(seed: int, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[n] within 0.5: white noise that swells and falls with each syllable."""
    random = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    loudness = 0.55 - 0.45 * np.cos(2 * np.pi * SYLLABLES_PER_SECOND * time_s)
    return 0.5 * loudness * random.uniform(-1.0, 1.0, len(time_s))


def _text(seed: int, characters: int) -> str:
    """About so many characters of words in a random order."""
    random = np.random.default_rng(seed)
    text = " ".join(random.choice(WORDS.split(), size=characters // 3))
    return text[:characters].rsplit(" ", 1)[0]
