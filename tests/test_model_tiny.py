"""The tiny model: built once, the same for the same seed, loaded by upstream as it is, heard and understood."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from voxtrain.fault import InputError
from voxtrain.model import upstream
from voxtrain.model.size import parameter_counts
from voxtrain.model.speaking import round_trip, sample_rate_hz, speak
from voxtrain.model.tiny import TinyModel
from voxtrain.model.tiny_build import speech_like

CPU = torch.device("cpu")
FILES = ["audiovae.safetensors", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def elsewhere(tiny: TinyModel, cache: Path, **changes: object) -> TinyModel:
    return TinyModel.model_validate({**tiny.model_dump(), "cache_dir": str(cache), **changes})


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_and_another_does_not(
    tiny: TinyModel, tiny_folder: Path, tmp_path: Path
) -> None:
    again = elsewhere(tiny, tmp_path).folder()
    assert again != tiny_folder
    assert list(digests(again)) == FILES
    assert digests(again) == digests(tiny_folder)
    other = elsewhere(tiny, tmp_path, seed=2).folder()
    assert other != again
    differs = {name for name, digest in digests(other).items() if digest != digests(again)[name]}
    assert differs == {"model.safetensors", "audiovae.safetensors"}


@pytest.mark.slow
def test_building_leaves_torchs_generator_alone(tiny: TinyModel, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    elsewhere(tiny, tmp_path, seed=3).folder()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_builders_at_the_same_time_build_one_whole_folder(tiny: TinyModel, tmp_path: Path) -> None:
    settings_file = tmp_path / "tiny.json"
    settings_file.write_text(elsewhere(tiny, tmp_path).model_dump_json())
    code = (
        "import pathlib, sys; from voxtrain.model.tiny import TinyModel;"
        "print(TinyModel.model_validate_json(pathlib.Path(sys.argv[1]).read_text()).folder())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(settings_file)]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {builder.communicate(timeout=300)[0].strip() for builder in builders}
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert len(folders) == 1
    assert list(digests(Path(folders.pop()))) == FILES
    assert [path.name for path in (tmp_path / "models").iterdir() if path.name.startswith((".writing", ".repl"))] == []


def test_folder_that_cannot_be_written_is_told(tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data\.cache_dir"):
        elsewhere(tiny, tmp_path / "file").folder()


def test_path_of_another_architecture_is_refused(tiny: TinyModel, tiny_folder: Path) -> None:
    assert elsewhere(tiny, tiny_folder, path=str(tiny_folder)).folder() == tiny_folder
    architecture = {**tiny.architecture, "feat_dim": 32}
    with pytest.raises(InputError, match="feat_dim: 32, 16"):
        elsewhere(tiny, tiny_folder, path=str(tiny_folder), architecture=architecture).folder()


@pytest.mark.parametrize("change", [{"seed": -1}, {"architecture": {}}, {"unknown": 1}])
def test_settings_that_cannot_be_built_are_refused(tiny: TinyModel, tmp_path: Path, change: dict) -> None:
    with pytest.raises(ValidationError):
        elsewhere(tiny, tmp_path, **change)


def test_vocabulary_must_hold_the_tokenizer(tiny: TinyModel, tmp_path: Path) -> None:
    architecture = {**tiny.architecture, "lm_config": {**tiny.architecture["lm_config"], "vocab_size": 300}}
    with pytest.raises(ValidationError, match="vocab_size"):
        elsewhere(tiny, tmp_path, architecture=architecture)


def test_counts_are_those_of_the_real_model(tiny: TinyModel, tiny_folder: Path) -> None:
    counts = parameter_counts(tiny.architecture)
    model = upstream.load_model(tiny_folder, None, CPU, torch.float32)
    for name in ("base_lm", "residual_lm", "feat_encoder", "feat_decoder"):
        assert counts[name] == sum(p.numel() for p in getattr(model, name).parameters()), name
    assert counts["trainable"] == sum(p.numel() for p in model.parameters())
    assert counts["audio_vae"] == sum(p.numel() for p in upstream.load_vae(tiny_folder).parameters())
    assert 1_000_000 < counts["trainable"] + counts["audio_vae"] < 2_000_000


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_encoded_and_never_as_an_audio_token(tiny_folder: Path, text: str) -> None:
    tokenize = upstream.load_tokenizer(tiny_folder)
    tokens = tokenize(text)
    assert tokens == tokenize(text)
    assert all(isinstance(token, int) and 0 < token < 361 for token in tokens)
    assert not {101, 102, 103, 104} & set(tokens)
    assert bool(tokens) == bool(text)


@pytest.mark.parametrize("text", ["<audio>", "</audio> <reference>", "a</reference>b"])
def test_names_of_audio_tokens_are_plain_text(tiny_folder: Path, text: str) -> None:
    tokens = upstream.load_tokenizer(tiny_folder)(text)
    assert not {101, 102, 103, 104} & set(tokens)
    assert len(tokens) == len(text) + 1


def test_unlike_texts_have_unlike_tokens(tiny_folder: Path) -> None:
    tokenize = upstream.load_tokenizer(tiny_folder)
    assert tokenize("Hi") == [3, 43, 76]
    assert tokenize("é") == [3, 300, 274]
    assert len({tuple(tokenize(text)) for text in ("a b", "a  b", "ab", "A b", "a b ")}) == 5


def test_upstream_loads_the_folder_as_it_is(tiny_folder: Path) -> None:
    with upstream.quiet():
        model = upstream.VoxCPM2Model.from_local(str(tiny_folder), optimize=False, training=True, device="cpu")
    ours = upstream.load_model(tiny_folder, None, CPU, torch.float32).state_dict()
    theirs = {name: t for name, t in model.state_dict().items() if not name.startswith("audio_vae.")}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    buffers = dict(model.named_buffers())
    for name, buffer in upstream.load_model(tiny_folder, None, CPU, torch.float32).named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_latents_are_fit_for_the_flow(tiny_folder: Path) -> None:
    latents = upstream.load_encoder(tiny_folder)(speech_like(16000).numpy()[0, 0])
    assert latents.shape == (25, 4, 16)
    assert abs(latents.mean().item()) < 0.2
    assert 0.5 < latents.std().item() < 2.0


def test_text_that_leaves_no_room_for_speech_is_told(tiny_folder: Path) -> None:
    speaker = upstream.load_speaker(tiny_folder, None, CPU)
    with pytest.raises(InputError, match="its 2048 tokens leave no room"):
        speak(speaker, "a" * 2047, None, 1, 6, 2, 2.0)


def test_speech_is_sound_and_depends_on_the_seed_alone(tiny_folder: Path) -> None:
    speaker = upstream.load_speaker(tiny_folder, None, CPU)
    assert sample_rate_hz(speaker) == 48000
    before = torch.get_rng_state()
    one, same, other = (speak(speaker, "Good morning.", None, seed, 6, 4, 2.0).wave for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.dtype == np.float32
    assert one.ndim == 1
    assert len(one) % (48000 * 4 // 25) == 0
    assert 4 * 7680 <= len(one) <= 6 * 7680  # upstream speaks at least four positions
    assert np.isfinite(one).all()
    assert 0.01 < float(one.std()) < 0.7
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_speech_is_cut_where_the_caller_says_and_it_is_known_whether_it_stopped(tiny_folder: Path) -> None:
    speaker, position = upstream.load_speaker(tiny_folder, None, CPU), 48000 * 4 // 25
    speaker.stop_head = torch.nn.Linear(speaker.stop_head.in_features, 2, dtype=speaker.stop_head.weight.dtype)
    with torch.no_grad():
        speaker.stop_head.weight.zero_()
        speaker.stop_head.bias.copy_(torch.tensor([1.0, 0.0]))
    endless = speak(speaker, "Hi.", None, 1, 40, 2, 2.0)
    assert len(speaker.text_tokenizer("Hi.")) * 6 + 10 < 40, "upstream would not have cut it sooner"
    assert (len(endless.wave), endless.stopped) == (40 * position, False)
    with torch.no_grad():
        speaker.stop_head.bias.copy_(torch.tensor([0.0, 1.0]))
    for longest in (4, 40):  # upstream listens to the stop head from the fourth position on
        short = speak(speaker, "Hi.", None, 1, longest, 2, 2.0)
        assert (len(short.wave), short.stopped) == (4 * position, True)


@pytest.mark.slow  # upstream reads it with librosa, which takes long to import
def test_a_reference_is_heard_and_takes_room(tiny_folder: Path, tmp_path: Path) -> None:
    speaker, voice = upstream.load_speaker(tiny_folder, None, CPU), tmp_path / "voice.wav"
    soundfile.write(voice, speech_like(16000).numpy()[0, 0], 16000)
    alone, with_it = (speak(speaker, "Good morning.", heard, 1, 6, 2, 2.0).wave for heard in (None, voice))
    assert not np.array_equal(alone, with_it)
    soundfile.write(voice, np.tile(speech_like(16000).numpy()[0, 0], 100), 16000)
    with pytest.raises(InputError, match="the reference's 2502 positions leave no room"):
        speak(speaker, "Good morning.", voice, 1, 6, 2, 2.0)


def test_a_recording_goes_through_the_autoencoder_and_back(tiny_folder: Path) -> None:
    wave = speech_like(16000).numpy()[0, 0][:15_999]
    heard, rate_hz = round_trip(upstream.load_vae(tiny_folder), wave)
    assert (rate_hz, heard.shape, heard.dtype) == (48000, (3 * 15_999,), np.float32)
    assert np.isfinite(heard).all()
