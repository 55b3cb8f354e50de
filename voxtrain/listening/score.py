"""Scores by models that listen: are the words right, and is it the speaker of the training data.

Only here, and only where the models' packages are installed: nothing of this is needed to train or to choose. A
score stands until its sample, the model or its settings change; a model that cannot be had leaves older scores alone.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from voxtrain.fault import InputError
from voxtrain.listening.ceiling import Recording
from voxtrain.listening.settings import Similarity, WordErrors
from voxtrain.listening.similarity import Embedder, Floats, closest, load_embedder, speaker_clips, voices
from voxtrain.listening.table import IN_REFERENCE, Sample, Scores, wave_file
from voxtrain.manifest.row import Row
from voxtrain.manifest.word_errors import character_error_rate, word_error_rate
from voxtrain.run_folder import RunFolder

TOLD_EVERY_S = 10.0

Heard = Sample | Recording
Score = Callable[[Heard, Path, Scores], Scores]
"""A sample or recording, its WAV and its scores so far, to its scores."""


class Scorer(Protocol):
    """One model that listens. Its name in the table stands for it and its settings."""

    def is_scored(self, scores: Scores) -> bool:
        """Whether those scores are this model's."""
        ...

    def load(self) -> Score:
        """Load the model. Raises InputError where it cannot be had."""
        ...


class WordScorer:
    """Word and character error rates by a speech recogniser."""

    def __init__(self, settings: WordErrors) -> None:
        self._settings = settings
        self._name = _digest("faster-whisper", _version("faster-whisper"), settings.model_dump(exclude={"device"}))

    def is_scored(self, scores: Scores) -> bool:
        """Whether those scores are this model's."""
        return scores.words_by == self._name

    def load(self) -> Score:
        """Load faster-whisper."""
        recognise = self._settings.recogniser()

        def score(one: Heard, path: Path, scores: Scores) -> Scores:
            text = one.line.text if isinstance(one, Sample) else one.text
            heard = " ".join(recognise(str(path)).split())
            errors = (word_error_rate(text, heard), character_error_rate(text, heard))
            return replace(
                scores, word_error_rate=errors[0], character_error_rate=errors[1], heard=heard, words_by=self._name
            )

        return score


class VoiceScorer:
    """The similarity of the voice to the closest training speaker, or to the reference audio that was given."""

    def __init__(self, settings: Similarity, rows: Sequence[Row], reference: Path | None) -> None:
        self._settings, self._reference = settings, reference
        self._clips = speaker_clips(rows, settings.clips)
        ids = [row.id for rows in self._clips.values() for row in rows]
        spoken_like = "" if reference is None else hashlib.sha256(reference.read_bytes()).hexdigest()
        package = "resemblyzer" if settings.model == "resemblyzer" else "transformers"
        self._name = _digest(package, _version(package), settings.model, ids, spoken_like)

    def is_scored(self, scores: Scores) -> bool:
        """Whether those scores are this model's."""
        return scores.similarity_by == self._name

    def load(self) -> Score:
        """Load the model and hear the training speakers."""
        embed = load_embedder(self._settings)
        trained = voices(self._clips, embed)
        reference = None if self._reference is None else embed(self._reference)[None]

        def score(one: Heard, path: Path, scores: Scores) -> Scores:
            in_reference = isinstance(one, Sample) and one.line.voice == IN_REFERENCE
            return replace(
                scores,
                speaker_similarity=_similarity(embed, path, reference if in_reference else trained),
                similarity_by=self._name,
            )

        return score


def _similarity(embed: Embedder, path: Path, others: Floats | None) -> float:
    """NaN where no voice is heard, or there is none to compare it with."""
    if others is None or not len(others):
        return float("nan")
    try:
        return closest(embed(path), others)
    except (ValueError, RuntimeError):
        return float("nan")


def score_all(
    run: RunFolder, heard: list[Heard], scorers: Sequence[Scorer], keep: Callable[[list[Heard]], None]
) -> tuple[list[Heard], list[str]]:
    """Everything that has sound, scored by each model that can be had; and why another cannot.

    keep: writes the tables, now and then.
    """
    told: list[str] = []
    for scorer in scorers:
        missing = [place for place, one in enumerate(heard) if _has_sound(one) and not scorer.is_scored(one.scores)]
        if not missing:
            continue
        try:
            score = scorer.load()
        except InputError as error:
            told += [f"{fault.what} (to mend it: {fault.remedy})" for fault in error.faults]
            continue
        began = last = time.monotonic()
        for number, place in enumerate(missing, start=1):
            one = heard[place]
            heard[place] = replace(one, scores=score(one, _path(run, one), one.scores))
            if time.monotonic() - last > TOLD_EVERY_S:
                last = time.monotonic()
                left = (last - began) / number * (len(missing) - number)
                print(f"scored {number} of {len(missing)} ({left:.0f} s left)", file=sys.stderr, flush=True)
                keep(heard)
        keep(heard)
    return heard, told


def _has_sound(one: Heard) -> bool:
    return one.measures is not None


def _path(run: RunFolder, one: Heard) -> Path:
    return wave_file(run, one) if isinstance(one, Sample) else one.wave_file(run)


def _digest(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
