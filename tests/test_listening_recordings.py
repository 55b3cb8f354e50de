"""Real recordings, as they are and through the AudioVAE; texts in the voice of a reference; the page again."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from judged_run import make_run, settings_of

from voxtrain.data.audio import read_wave
from voxtrain.durable import read_jsonl, write_json
from voxtrain.fault import DONE, InputError
from voxtrain.listening.__main__ import main
from voxtrain.listening.ceiling import AS_IT_IS, ROUND_TRIP, read_recordings
from voxtrain.listening.table import ALONE, IN_REFERENCE, read_samples, wave_file
from voxtrain.model import speaking, upstream
from voxtrain.run_folder import DataFolder, RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clip(clips: list[tuple[Path, str, str]]) -> Path:
    return clips[7][0]


@pytest.fixture(scope="module")
def heard(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, clips: list[tuple[Path, str, str]], clip: Path
) -> RunFolder:
    """A run of one checkpoint that speaks with a reference, and two recordings."""
    said = ("listening.texts=[Good morning.]", f"listening.reference={clip}", "listening.ceiling=2")
    run = make_run(tmp_path_factory.mktemp("run") / "run", cache, clips[:3], (0,), "demo", *said)
    assert main([str(run.root)]) == DONE
    return run


@pytest.fixture
def run(heard: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy to do things to."""
    return RunFolder(shutil.copytree(heard.root, tmp_path / "run", symlinks=True))


def test_recordings_are_there_as_they_are_and_through_the_audiovae(heard: RunFolder) -> None:
    found = read_recordings(heard)
    assert [one.kind for one in found] == [AS_IT_IS, ROUND_TRIP] * 2
    audio = {row["id"]: row["audio"] for row in map(dict, _validation(heard))}
    vae = upstream.load_vae(settings_of(heard).model.folder())
    for one, through in zip(found[::2], found[1::2], strict=True):
        assert one.id == through.id
        wave = read_wave(Path(audio[one.id]))
        as_it_is, _ = soundfile.read(one.wave_file(heard), dtype="float32")
        np.testing.assert_allclose(as_it_is, wave, rtol=0, atol=2**-15)  # 16 bits
        made, rate_hz = speaking.round_trip(vae, wave)
        round_trip, heard_hz = soundfile.read(through.wave_file(heard), dtype="float32")
        assert heard_hz == rate_hz == 48_000
        np.testing.assert_allclose(round_trip, np.clip(made, -1, 1), rtol=0, atol=2**-15)
        assert len(round_trip) == 3 * len(wave)
    with heard.recordings_table.open(newline="") as table:
        assert len(list(csv.DictReader(table))) == 4
    page = heard.listening_page.read_text()
    assert "Through the AudioVAE" in page
    assert page.count('class="sample"') == 2 + 4


def _validation(run: RunFolder) -> list[dict[str, str]]:
    return list(read_jsonl(DataFolder(run.data).rows("validation")))


def test_recordings_are_made_once_and_go_when_they_are_not_wanted(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.recordings.glob("*.wav")}
    assert len(before) == 4
    monkeypatch.setattr(upstream, "load_vae", None)  # calling it would fail
    assert main([str(run.root)]) == DONE
    assert {path: path.stat().st_mtime_ns for path in run.recordings.glob("*.wav")} == before
    assert main([str(run.root), "listening.ceiling=1"]) == DONE
    assert len(list(run.recordings.glob("*.wav"))) == 2
    assert main([str(run.root), "listening.ceiling=0"]) == DONE
    assert not run.recordings_table.exists()
    assert "Through the AudioVAE" not in run.listening_page.read_text()


def test_every_text_is_said_alone_and_in_the_voice_of_the_reference(heard: RunFolder, clip: Path) -> None:
    alone, like = read_samples(heard)
    assert (alone.line.voice, like.line.voice) == (ALONE, IN_REFERENCE)
    assert alone.line.torch_seed() == like.line.torch_seed()
    speaker = upstream.load_speaker(heard.checkpoint(0), None, speaking.torch.device("cpu"))
    settings = settings_of(heard).listening
    for sample, reference in ((alone, None), (like, clip)):
        wave = speaking.speak(
            speaker,
            "Good morning.",
            reference,
            sample.line.torch_seed(),
            settings.max_positions(),
            settings.inference_timesteps,
            settings.cfg_value,
        ).wave
        found, _ = soundfile.read(wave_file(heard, sample), dtype="float32")
        np.testing.assert_allclose(found, np.clip(wave, -1, 1), rtol=0, atol=2**-15)
    assert wave_file(heard, alone).read_bytes() != wave_file(heard, like).read_bytes()
    assert "reference voice" in heard.listening_page.read_text()


def test_another_reference_is_heard_and_one_that_is_gone_is_told(
    run: RunFolder, clips: list[tuple[Path, str, str]], tmp_path: Path
) -> None:
    before = {sample.line.voice: sample.made_from for sample in read_samples(run)}
    assert main([str(run.root), f"listening.reference={clips[0][0]}"]) == DONE
    after = {sample.line.voice: sample.made_from for sample in read_samples(run)}
    assert after[ALONE] == before[ALONE]
    assert after[IN_REFERENCE] != before[IN_REFERENCE]
    with pytest.raises(InputError, match="there is no such file"):
        main([str(run.root), f"listening.reference={tmp_path / 'none.wav'}"])


def test_the_page_again_shows_what_was_heard_whatever_the_settings_say(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(run.root), "listening.texts=[Other words.]", "listening.reference=null"]) == DONE
    monkeypatch.setattr(upstream, "load_speaker", None)  # calling it would fail
    write_json(run.selection, {"selected_step": 0})
    assert main([str(run.root), "--page"]) == DONE
    page = run.listening_page.read_text()
    assert "Other words." in page
    assert "Good morning." not in page
    assert "step 0 is selected" in page
    shutil.rmtree(run.listening)
    with pytest.raises(InputError, match="no checkpoint of this run has spoken"):
        main([str(run.root), "--page"])
