"""Scores by models that listen: each sound is scored once by each model that can be had, with intervals over texts."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from voxtrain.fault import Fault, InputError
from voxtrain.listening import score, similarity
from voxtrain.listening.__main__ import missing_scores
from voxtrain.listening.ceiling import AS_IT_IS, Recording, chosen_clips
from voxtrain.listening.measure import Measures
from voxtrain.listening.score import Heard, Score, VoiceScorer, WordScorer, score_all
from voxtrain.listening.settings import ListeningSettings, Similarity, WordErrors
from voxtrain.listening.similarity import closest, load_embedder, speaker_clips, voices
from voxtrain.listening.summary import Pace, mean_over_texts, share_of, summaries, training_pace, write_summaries
from voxtrain.listening.table import ALONE, IN_REFERENCE, Line, Sample, Scores
from voxtrain.manifest.row import Row
from voxtrain.run_folder import RunFolder

MEASURES = Measures(1.0, 0.1, 0.5, -20.0, -23.0, 0.0, 0.0, 0.0)
WORDS = WordErrors(model="tiny", device="cpu", compute_type="int8", language=None)
VOICE = Similarity(model="resemblyzer", device="cpu", clips=3)


def sample(step: int = 1, text: str = "a b", take: int = 1, voice: str = ALONE, failed: str = "") -> Sample:
    measures = None if failed else MEASURES
    return Sample(step, Line(text, text, take, voice), "x", runaway=False, failed=failed, measures=measures)


def row(number: int, speaker: str | None = "s", duration_s: float = 2.0, group: str = "g", text: str = "abcd") -> Row:
    record = {"id": f"row{number}", "audio": f"/{speaker}_{number}.wav", "text": text, "speaker": speaker}
    return Row.from_record(record | {"group": group, "line": number, "duration": duration_s})


class Counted:
    """A scorer that gives each sound the number of its call."""

    def __init__(self, name: str, missing: str = "") -> None:
        self.name, self.missing, self.calls = name, missing, 0

    def is_scored(self, scores: Scores) -> bool:
        return scores.words_by == self.name

    def load(self) -> Score:
        if self.missing:
            raise InputError(Fault("listening.word_errors", self.missing, "install it"))

        def scored(one: Heard, path: Path, scores: Scores) -> Scores:
            self.calls += 1
            return replace(scores, word_error_rate=self.calls / 10, words_by=self.name)

        return scored


def test_each_sound_is_scored_once_and_silence_never(tmp_path: Path) -> None:
    heard: list[Heard] = [sample(), Recording("clip", "a", AS_IT_IS, "x", MEASURES), sample(take=2, failed="no luck")]
    kept: list[list[Heard]] = []
    found, told = score_all(RunFolder(tmp_path), heard, [Counted("a")], lambda now: kept.append(list(now)))
    assert [one.scores.word_error_rate for one in found[:2]] == [0.1, 0.2]
    assert math.isnan(found[2].scores.word_error_rate)
    assert told == []
    assert kept == [found]
    again = Counted("a")
    assert score_all(RunFolder(tmp_path), list(found), [again], kept.append) == (found, [])
    assert again.calls == 0
    other, _ = score_all(RunFolder(tmp_path), list(found), [Counted("b")], kept.append)
    assert [one.scores.words_by for one in other[:2]] == ["b", "b"]


def test_a_model_that_cannot_be_had_is_told_and_leaves_the_others_and_older_scores(tmp_path: Path) -> None:
    older: list[Heard] = [replace(sample(), scores=Scores(0.5, words_by="older"))]
    scorers = [Counted("gone", "it is not installed")]
    found, told = score_all(RunFolder(tmp_path), list(older), scorers, lambda _: None)
    assert found == older
    assert told == ["it is not installed (to mend it: install it)"]
    found, told = score_all(RunFolder(tmp_path), list(older), [*scorers, Counted("here")], lambda _: None)
    assert (found[0].scores.words_by, len(told)) == ("here", 1)


@pytest.mark.parametrize("package", ["faster_whisper", "resemblyzer"])
def test_without_the_extra_the_remedy_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    scorer = WordScorer(WORDS) if package == "faster_whisper" else VoiceScorer(VOICE, [row(1)], None)
    extra = "asr" if package == "faster_whisper" else "voice"
    with pytest.raises(InputError, match=rf"pip install 'voxtrain\[{extra}\]', or listening\.\w+=null"):
        scorer.load()


def test_words_are_compared_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WordErrors, "recogniser", lambda self: lambda path: " Good\n mourning ")
    scorer = WordScorer(WORDS)
    scores = scorer.load()(sample(text="Good morning."), Path("a.wav"), Scores(speaker_similarity=0.5))
    assert (scores.word_error_rate, scores.character_error_rate) == (0.5, 1 / 11)
    assert (scores.heard, scores.speaker_similarity) == ("Good mourning", 0.5)
    assert scorer.is_scored(scores)
    assert WordScorer(WORDS.model_copy(update={"device": "auto"})).is_scored(scores)  # the same words on another device
    assert not WordScorer(WORDS.model_copy(update={"model": "base"})).is_scored(scores)


def directions(path: Path) -> np.ndarray:
    """An embedder: the voice is known by the first letter of the file name."""
    if path.name.startswith("mute"):
        raise ValueError("no voice is heard in it")
    return np.eye(4)[{"s": 0, "t": 1, "r": 2}[path.name[0]]]


def test_similarity_is_to_the_closest_speaker_or_to_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(score, "load_embedder", lambda settings: directions)
    reference = tmp_path / "r.wav"
    reference.write_bytes(b"a voice")
    rows = [row(1, "s"), row(2, "s"), row(3, "t"), row(4, "mute")]
    scorer = VoiceScorer(VOICE, rows, reference)
    rate = scorer.load()

    def similar(voice: str, path: str) -> float:
        return rate(sample(voice=voice), Path(path), Scores(heard="kept")).speaker_similarity

    assert [similar(ALONE, path) for path in ("s.wav", "t.wav", "r.wav")] == [1, 1, 0]
    assert [similar(IN_REFERENCE, path) for path in ("s.wav", "r.wav")] == [0, 1]
    assert math.isnan(similar(ALONE, "mute.wav"))
    found = rate(sample(), Path("s.wav"), Scores(heard="kept"))
    assert found.heard == "kept"
    assert scorer.is_scored(found)
    assert not VoiceScorer(VOICE, rows[:3], reference).is_scored(found)
    assert not VoiceScorer(VOICE, rows, None).is_scored(found)
    assert VoiceScorer(VOICE, rows, None).load()(sample(voice=IN_REFERENCE), Path("s.wav"), found) != found
    reference.write_bytes(b"another")
    assert not VoiceScorer(VOICE, rows, reference).is_scored(found)
    nobody = VoiceScorer(VOICE, [row(4, "mute")], None).load()
    assert math.isnan(nobody(sample(), Path("s.wav"), Scores()).speaker_similarity)


def test_the_clips_that_stand_for_speakers_are_always_the_same_ones() -> None:
    rows = [row(number, f"s{number % 3}") for number in range(30)] + [row(99, None)]
    found = speaker_clips(rows, 4)
    assert found == speaker_clips(rows[::-1], 4)
    assert {speaker: len(clips) for speaker, clips in found.items()} == {"s0": 4, "s1": 4, "s2": 4, "": 1}
    many = speaker_clips([row(number, f"s{number % 50}") for number in range(200)], 16)
    assert len(many) == similarity.MOST_SPEAKERS
    assert sum(map(len, many.values())) <= similarity.MOST_CLIPS


def test_a_speaker_is_the_mean_of_the_clips() -> None:
    def embed(path: Path) -> np.ndarray:
        return np.eye(2)[int(path.stem[-1]) % 2]

    (voice,) = voices({"s": [row(1), row(2)]}, embed)
    assert voice == pytest.approx([0.5**0.5, 0.5**0.5])
    assert closest(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [0.6, 0.8]])) == 0.6


def test_the_page_again_tells_which_scores_were_never_given() -> None:
    scored = replace(sample(), scores=Scores(words_by="a"))
    settings = ListeningSettings.model_construct(word_errors=WORDS, similarity=VOICE)
    assert missing_scores(settings, [sample(), scored]) == ["voices: python -m voxtrain.listening RUN says why"]
    assert len(missing_scores(settings, [sample()])) == 2
    assert missing_scores(ListeningSettings.model_construct(word_errors=None, similarity=None), [sample()]) == []


@pytest.mark.slow  # to import transformers takes seconds
def test_an_x_vector_model_of_transformers_by_its_folder(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (10, 8)}
    sizes |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 2}
    sizes |= {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    WavLMForXVector(WavLMConfig(**sizes)).save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "model")
    embed = load_embedder(VOICE.model_copy(update={"model": str(tmp_path / "model")}))
    noise = np.random.default_rng(0).normal(0, 0.1, (24_000, 2))
    soundfile.write(tmp_path / "noise.wav", noise, 48_000)
    voice = embed(tmp_path / "noise.wav")
    assert voice.shape == (8,)
    assert voice @ voice == pytest.approx(1)
    assert (embed(tmp_path / "noise.wav") == voice).all()
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(InputError, match="the model cannot be loaded"):
        load_embedder(VOICE.model_copy(update={"model": str(tmp_path / "model")}))


def test_intervals_are_over_texts_and_not_over_takes() -> None:
    texts, takes = ("a", "b", "c", "d"), 50
    values = [0.1 * place for place in range(4) for _ in range(takes)]
    found = mean_over_texts(values, [text for text in texts for _ in range(takes)])
    once = mean_over_texts([0.0, 0.1, 0.2, 0.3], texts)
    assert found.mean == pytest.approx(once.mean) == pytest.approx(0.15)
    assert found.low == pytest.approx(once.low)  # a text that is said fifty times is still one text
    assert (found.low, found.high) == pytest.approx((-0.055, 0.355), abs=0.001)  # t with 3 degrees of freedom
    assert mean_over_texts([*values, math.nan], [*[t for t in texts for _ in range(takes)], "e"]) == found
    assert math.isnan(mean_over_texts([1.0, 2.0], ["a", "b"]).low)
    assert math.isnan(mean_over_texts([math.nan], ["a"]).mean)


def test_a_share_of_none_is_not_surely_none() -> None:
    found = share_of([False] * 15)
    assert (found.mean, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 15))
    assert math.isnan(share_of([]).mean)


def test_the_pace_is_over_that_of_the_training_data(tmp_path: Path) -> None:
    pace = training_pace([row(number, duration_s=0.1 * number, text="abcd") for number in range(1, 101)])
    assert pace == Pace(pytest.approx(0.149, abs=0.01), pytest.approx(1.26, abs=0.01), pytest.approx(2.38, abs=0.01))
    assert training_pace([]) is None
    found = summaries([sample(0), sample(0, "c"), sample(0, "d", failed="no"), sample(5)], Pace(0.1, 0.05, 0.2))
    assert [one.step for one in found] == [0, 5]
    assert found[0].means["pace"].mean == pytest.approx(2)  # 0.1 s a character, over 0.05
    assert (found[0].samples, found[0].failed.mean, found[0].runaway.mean) == (3, pytest.approx(1 / 3), 0)
    assert math.isnan(summaries([sample()], None)[0].means["pace"].mean)
    run = RunFolder(tmp_path)
    run.listening.mkdir(parents=True)
    write_summaries(run, found)
    head, *lines = run.listening_checkpoints.read_text().splitlines()
    assert head.startswith("step,samples,failed,failed/low,failed/high,runaway,")
    cells = dict(zip(head.split(","), lines[0].split(","), strict=True))
    assert float(cells["pace"]) == pytest.approx(2)
    assert cells["word_error_rate"] == cells["pace/low"] == ""  # not measured; two texts tell no spread


def test_recordings_are_of_different_groups_first_and_short() -> None:
    rows = [row(number, group=f"g{number % 3}", duration_s=20.0 if number < 3 else 2.0) for number in range(12)]
    found = chosen_clips(rows, 3)
    assert {one.group for one in found} == {"g0", "g1", "g2"}
    assert all((one.duration_s or 0) < 15 for one in found)
    assert found == chosen_clips(rows[::-1], 3)
    assert len(chosen_clips(rows, 7)) == 7
    assert chosen_clips(rows[:2], 3) == chosen_clips(rows[:2][::-1], 3) != []
    assert chosen_clips(rows, 0) == []
