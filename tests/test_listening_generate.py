"""Samples of real checkpoints of the tiny model: made once, repeatable, and what fails stops nothing."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from judged_run import CPU, make_run, settings_of

from voxtrain.durable import read_json, write_json
from voxtrain.fault import DONE, FAILED, InputError
from voxtrain.listening.__main__ import main, parse
from voxtrain.listening.settings import ListeningSettings
from voxtrain.listening.sound import data_address, waveform_path
from voxtrain.listening.table import Sample, lines, read_samples, text_id, wave_file
from voxtrain.model import speaking, upstream
from voxtrain.model.speaking import speak
from voxtrain.model.tuning import LoraTuning
from voxtrain.run_folder import RunFolder

STEPS = (0, 10)
TEXTS = "listening.texts=[Good morning.,'<b>3</b> & 4']"
SOLVER_STEPS = 4
"""Not the default: quicker, and a sample shows that the setting is heard."""
NETWORK = re.compile(r"""<(script|link|img|audio|source|iframe)[^>]+(src|href)=["']?(https?:)?//""")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, clips: list[tuple[Path, str, str]]
) -> dict[str, RunFolder]:
    """A full run and a LoRA run whose checkpoints have spoken."""
    made = {}
    for recipe in ("demo", "lora_demo"):
        run = make_run(
            tmp_path_factory.mktemp(recipe) / "run",
            cache,
            clips[:1],
            STEPS,
            recipe,
            TEXTS,
            f"listening.inference_timesteps={SOLVER_STEPS}",
        )
        write_json(run.selection, {"selected_step": 10})
        assert main([str(run.root)]) == DONE
        made[recipe] = run
    return made


@pytest.fixture
def run(runs: dict[str, RunFolder], tmp_path: Path) -> RunFolder:
    """A copy of the full run to do things to."""
    return RunFolder(shutil.copytree(runs["demo"].root, tmp_path / "run", symlinks=True))


def stamps(run: RunFolder) -> dict[str, int]:
    """When each WAV was written."""
    found = {str(path.relative_to(run.listening)): path.stat().st_mtime_ns for path in run.listening.rglob("*.wav")}
    assert found
    return found


@pytest.mark.slow
def test_every_checkpoint_says_every_text(runs: dict[str, RunFolder]) -> None:
    for run in runs.values():
        with run.listening_table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["step"], row["text"]) for row in rows] == [
            (str(step), text) for step in STEPS for text in ("Good morning.", "<b>3</b> & 4")
        ]
        assert {str(sample.step) for sample in read_samples(run)} == {"0", "10"}
        for sample in read_samples(run):
            info = soundfile.info(wave_file(run, sample))
            assert (info.samplerate, info.channels, info.subtype, info.format) == (48000, 1, "PCM_16", "WAV")
            assert sample.measures is not None
            assert info.frames / 48000 == sample.measures.seconds
            assert not sample.runaway or sample.measures.seconds == 7 * 0.16  # one second is cut after 7 positions
            assert not sample.failed


@pytest.mark.slow
def test_a_sample_is_that_of_a_freshly_loaded_checkpoint(runs: dict[str, RunFolder]) -> None:
    for run in runs.values():
        settings = settings_of(run)
        folder, adapted = run.checkpoint(10), isinstance(settings.tuning, LoraTuning)
        speaker = upstream.load_speaker(settings.model.folder(), folder, CPU) if adapted else None
        speaker = speaker or upstream.load_speaker(folder, None, CPU)
        for sample in [one for one in read_samples(run) if one.step == 10]:
            wave = speak(speaker, sample.line.text, None, sample.line.torch_seed(), 7, SOLVER_STEPS, 2.0).wave
            found, _ = soundfile.read(wave_file(run, sample), dtype="float32")
            np.testing.assert_allclose(found, np.clip(wave, -1, 1), rtol=0, atol=2**-15)  # 16 bits
    heard = {s.step: soundfile.read(wave_file(run, s))[0] for s in read_samples(run) if s.line.text == "Good morning."}
    assert heard[0].shape != heard[10].shape or (heard[0] != heard[10]).any()


@pytest.mark.slow
def test_step_0_of_a_lora_run_speaks_like_the_base_model(runs: dict[str, RunFolder]) -> None:
    full, lora = (runs[name] for name in ("demo", "lora_demo"))
    base = [wave_file(full, sample).read_bytes() for sample in read_samples(full) if sample.step == 0]
    adapted = [wave_file(lora, sample).read_bytes() for sample in read_samples(lora) if sample.step == 0]
    assert adapted == base


@pytest.mark.slow
def test_nothing_is_made_twice(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before, table = stamps(run), run.listening_table.read_bytes()
    monkeypatch.setattr(upstream, "load_speaker", None)  # calling it would fail
    assert main([str(run.root)]) == DONE
    assert stamps(run) == before
    assert run.listening_table.read_bytes() == table


@pytest.mark.slow
def test_only_what_changed_is_made_again(run: RunFolder, runs: dict[str, RunFolder]) -> None:
    before = stamps(run)
    shutil.rmtree(run.checkpoint(0))  # gone: its samples stay
    shutil.copyfile(runs["demo"].checkpoint(0) / "model.safetensors", run.checkpoint(10) / "model.safetensors")
    write_json(run.checkpoint(10) / "step.json", read_json(runs["demo"].checkpoint(0) / "step.json") | {"step": 10})
    assert main([str(run.root)]) == DONE
    after = stamps(run)
    assert {name for name in before if after[name] == before[name]} == {
        n for n in before if n.startswith("step_0000000")
    }
    samples = {(sample.step, sample.line.text): wave_file(run, sample).read_bytes() for sample in read_samples(run)}
    assert len(samples) == 4
    assert samples[10, "Good morning."] == samples[0, "Good morning."]  # it has the base model's weights now


@pytest.mark.slow
def test_other_texts_replace_these(run: RunFolder) -> None:
    assert main([str(run.root), "listening.texts=[Other.]", "listening.seeds=2"]) == DONE
    wanted = {f"step_{step:07d}/{text_id('Other.')}_{take}.wav" for step in STEPS for take in (1, 2)}
    assert set(stamps(run)) == wanted
    assert len(read_samples(run)) == 4
    assert "take 2" in run.listening_page.read_text()


@pytest.mark.slow
def test_a_sample_that_fails_is_told_and_stops_no_other(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.listening)
    speaks: Callable[..., Any] = speaking.speak

    def failing(model: object, text: str, *rest: object) -> Any:
        if text == "Good morning.":
            raise RuntimeError("no\n  luck")
        return speaks(model, text, *rest)

    monkeypatch.setattr(speaking, "speak", failing)
    assert main([str(run.root)]) == DONE
    assert [sample.failed for sample in read_samples(run)] == ["no luck", "", "no luck", ""]
    assert len(stamps(run)) == 2
    assert "no sound: no luck" in run.listening_page.read_text()
    assert "2 failed" in capsys.readouterr().out
    monkeypatch.undo()
    assert main([str(run.root)]) == DONE  # failures are tried again
    assert [sample.failed for sample in read_samples(run)] == [""] * 4


@pytest.mark.slow
def test_a_checkpoint_that_cannot_speak_is_told_and_the_others_speak(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.listening)
    (run.checkpoint(0) / "model.safetensors").write_bytes(b"")
    assert main([str(run.root)]) == FAILED
    assert {sample.step for sample in read_samples(run)} == {10}
    assert "step 0 cannot speak" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_is_whole_and_needs_no_network(runs: dict[str, RunFolder]) -> None:
    html = runs["demo"].listening_page.read_text()
    assert not NETWORK.search(html)
    assert "url(" not in html
    assert html.count('src="data:audio/mpeg;base64,') == 4
    assert html.count('class="sample"') == 4
    assert "&lt;b&gt;3&lt;/b&gt; &amp; 4" in html
    assert "<b>3</b>" not in html
    assert html.count('<th scope="col" class="selected">Step 10') == 1
    for file in re.findall(r'<a href="([^"]+)">WAV', html):
        assert (runs["demo"].listening / file).is_file()


def test_a_waveform_is_drawn_inside_its_box() -> None:
    path = waveform_path(np.sin(np.linspace(0, 900, 48000)).astype(np.float32))
    assert ElementTree.fromstring(f'<path d="{path}"/>').get("d") == path
    heights = [float(value) for value in re.findall(r"V([-\d.]+)", path)]
    assert len(heights) == 144
    assert 0 <= min(heights) < 0.5
    assert 27.5 < max(heights) <= 28


def test_sound_in_the_page_is_the_sample(tmp_path: Path) -> None:
    import base64
    import io

    time_s = np.arange(24000) / 48000
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * time_s), 48000)
    address = data_address(soundfile.read(tmp_path / "a.wav", dtype="float32")[0], 48000)
    wave, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert rate_hz == 48000
    assert abs(len(wave) - 24000) <= 2 * 1152  # MP3 comes in frames of 1152
    spectrum = np.abs(np.fft.rfft(wave))
    assert spectrum.argmax() * rate_hz / len(wave) == pytest.approx(440, abs=3)
    assert len(address) < 24000  # a WAV of 16 bits would be 64,000


@pytest.mark.slow
def test_a_line_of_the_table_survives_writing_and_reading(runs: dict[str, RunFolder]) -> None:
    samples = read_samples(runs["demo"])
    broken = Sample(5, samples[0].line, "abc", runaway=False, failed="why, indeed", measures=None)
    for sample in (*samples, broken):
        record = {name: str(value) for name, value in sample.to_record().items()}
        assert Sample.from_record(record) == sample


def listening(**changes: Any) -> ListeningSettings:
    """Settings as in conf/, changed."""
    values = {"texts": ["a"], "seeds": 1, "max_seconds": 4, "inference_timesteps": 10, "cfg_value": 2, "device": "auto"}
    values |= {"reference": None, "ceiling": 0, "word_errors": None, "similarity": None}
    return ListeningSettings.model_validate(values | changes)


def test_noise_is_that_of_the_text_and_the_take() -> None:
    seeds = [line.torch_seed() for line in lines(listening(texts=["a", "b"], seeds=3))]
    assert len(set(seeds)) == 6
    assert [line.torch_seed() for line in lines(listening(texts=["b", "a"], seeds=3))] == seeds[3:] + seeds[:3]
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    "changes", [{"texts": []}, {"texts": [" "]}, {"texts": ["a", "a"]}, {"seeds": 0}, {"voice": 1}]
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"texts|seeds|voice"):
        listening(**changes)
    assert listening().max_positions() == 25


def test_texts_of_any_script_have_file_names() -> None:
    names = {text_id(text) for text in ("Good morning.", "早上好", "../../etc/passwd", "Good morning!")}
    assert len(names) == 4
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--draws"]])
def test_arguments_that_cannot_be_meant_are_told(arguments: list[str]) -> None:
    with pytest.raises(InputError):
        parse(arguments)
