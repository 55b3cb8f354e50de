"""Where a released model is looked for, and what is said when it is not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from voxtrain.fault import InputError
from voxtrain.model.folder import differences, is_complete
from voxtrain.model.released import ReleasedModel


def released(tiny, path: Path | str, **changes: object) -> ReleasedModel:
    return ReleasedModel(path=str(path), architecture={**tiny.architecture, **changes})


def test_local_folder_is_used_as_it_is(tiny, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert released(tiny, tiny_folder).folder() == tiny_folder
    monkeypatch.chdir(tiny_folder.parent.parent)
    assert released(tiny, f"models/{tiny_folder.name}").folder() == tiny_folder  # though it looks like a hub id


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "nothing", "a/b/c"])
def test_folder_that_is_not_there(tiny, path: str) -> None:
    with pytest.raises(InputError, match="there is no such folder") as told:
        released(tiny, path).folder()
    assert "openbmb/VoxCPM2" in told.value.faults[0].remedy


def test_hub_that_cannot_be_reached_names_the_remedy(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as told:
        released(tiny, "openbmb/VoxCPM2").folder()
    (fault,) = told.value.faults
    assert fault.where == "model.path = openbmb/VoxCPM2"
    assert "cannot be fetched" in fault.what
    assert "hf download openbmb/VoxCPM2" in fault.remedy
    assert "+recipe=demo" in fault.remedy


def test_snapshot_that_is_here_is_used_without_the_network(
    tiny, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def snapshot(name: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert released(tiny, "openbmb/VoxCPM2").folder() == tiny_folder
    assert asked == [True]


def test_half_a_snapshot_is_fetched_again(
    tiny, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Path(shutil.copytree(tiny_folder, tmp_path / "half"))
    (half / "model.safetensors").unlink()
    assert not is_complete(half)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns, local_files_only=False: str(half if local_files_only else tiny_folder),
    )
    assert released(tiny, "openbmb/VoxCPM2").folder() == tiny_folder


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("config.json", "it has no config.json"),
        ("model.safetensors", "there is no model.safetensors or pytorch_model.bin"),
        ("audiovae.safetensors", "there is no audiovae.safetensors or audiovae.pth"),
        ("tokenizer.json", "there is no tokenizer.json or tokenizer.model"),
    ],
)
def test_incomplete_folder(tiny, tiny_folder: Path, tmp_path: Path, name: str, reason: str) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (folder / name).unlink()
    with pytest.raises(InputError, match=reason):
        released(tiny, folder).folder()


def test_all_that_is_missing_is_told_at_once(tiny, tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_folder / "config.json", tmp_path / "config.json")
    with pytest.raises(InputError) as told:
        released(tiny, tmp_path).folder()
    assert len(told.value.faults) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "this is no JSON"), ("[]", "the architecture is none"), ('{"architecture": "voxcpm"}', "is voxcpm, and")],
)
def test_config_of_something_else(tiny, tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=reason):
        released(tiny, tmp_path).folder()


def test_architecture_must_agree_with_the_folder(tiny, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"patch_size: 2, 4; residual_lm_num_layers: 8, 2"):
        released(tiny, tiny_folder, patch_size=2, residual_lm_num_layers=8).folder()


def test_differences_pass_over_defaults_and_devices() -> None:
    expected = {"a": {"b": 1, "c": 2}, "device": "cuda", "only": 1}
    assert differences(expected, {"a": {"b": 1, "d": 3}, "device": "cpu", "other": 1}) == []
    assert differences(expected, {"a": {"b": 2, "c": [0] * 100}}) == [
        "a.b: 1, 2",
        "a.c: 2, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...",
    ]


def test_architecture_that_cannot_be_counted_is_refused(tiny) -> None:
    architecture = {key: value for key, value in tiny.architecture.items() if key != "lm_config"}
    with pytest.raises(ValidationError, match="'lm_config' is missing"):
        ReleasedModel(path="openbmb/VoxCPM2", architecture=architecture)


def test_settings_import_no_torch() -> None:
    code = (
        "import sys, json; import voxtrain.model.released, voxtrain.model.tiny, voxtrain.model.tuning,"
        "voxtrain.model.size, voxtrain.model.step, voxtrain.optim.adamw, voxtrain.optim.schedule;"
        "print(json.dumps([m for m in ('torch', 'voxcpm', 'transformers', 'pytorch_lightning') if m in sys.modules]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == []
