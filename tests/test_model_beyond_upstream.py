"""Adapters in LocEnc and on the stop layers: they learn as others do, are kept in files of ours, and leave merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judged_run import make_run, sources_of
from model_batches import MicroBatch, micro_batch, one_row, upstream_losses

from voxtrain.checkpoint.__main__ import main as checkpoint_door
from voxtrain.checkpoint.export import export
from voxtrain.checkpoint.weights import first_model, put_weights
from voxtrain.durable import read_json
from voxtrain.fault import InputError
from voxtrain.listening.generate import listen
from voxtrain.listening.table import wave_file
from voxtrain.model import upstream
from voxtrain.model.loss import position_losses
from voxtrain.model.speaking import speak
from voxtrain.run_folder import RunFolder
from voxtrain.settings import Settings, compose, load
from voxtrain.validation.judge import judge

CPU = torch.device("cpu")
BEYOND = ("tuning.locenc=true", "tuning.stop_head=true", "tuning.rank=4")
QUICK = ("validation.draws=1", "listening.texts=[Hello there.]", "listening.seeds=1")
ROWS = [one_row(3, 9, 5, 3), one_row(4, 20, 9), one_row(5, 4, 12, 6)]


@pytest.fixture(scope="module")
def settings(cache: Path) -> Settings:
    return compose(["+recipe=lora_demo", f"data.cache_dir={cache}", *BEYOND])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path, clips: list[tuple[Path, str, str]]) -> RunFolder:
    """A run whose checkpoints 0 and 10 hold adapters everywhere."""
    return make_run(tmp_path_factory.mktemp("beyond") / "run", cache, clips[:3], (0, 10), "lora_demo", *BEYOND, *QUICK)


def adapted_model(run: RunFolder, settings: Settings, step: int = 10) -> Any:
    model = upstream.load_model(settings.model.folder(), settings.tuning, CPU, torch.float32)  # type: ignore[arg-type]
    upstream.load_adapter(model, run.checkpoint(step))
    return model


def losses(model: Any, batch: MicroBatch, kernels: str = "plain") -> torch.Tensor:
    found = position_losses(model, batch, activation_checkpointing=False, kernels=kernels)
    return torch.stack((found.diff, found.stop))


def test_adapters_are_where_they_were_asked_for(settings: Settings, tiny_folder: Path) -> None:
    model = upstream.load_model(tiny_folder, settings.tuning, CPU, torch.float32)  # type: ignore[arg-type]
    named = [name.rpartition(".")[0] for name in upstream.adapters(model) if name.endswith("lora_A")]
    in_encoder = [name for name in named if name.startswith("feat_encoder.encoder.layers.")]
    assert len(in_encoder) == 2 * 4
    assert {name.rpartition(".")[2] for name in in_encoder} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert [name for name in named if "." not in name] == ["stop_proj", "stop_head"]
    assert len(named) == 4 * 8 + 2
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(upstream.adapters(model))


@pytest.mark.parametrize("kernels", ["plain", "cpu"])
def test_loss_and_gradients_of_all_adapters_equal_upstreams(run: RunFolder, settings: Settings, kernels: str) -> None:
    model, batch = adapted_model(run, settings), micro_batch(ROWS)
    expected = upstream_losses(model, batch)
    (expected["loss/diff"] + expected["loss/stop"]).backward()
    wanted = {name: p.grad.clone() for name, p in upstream.adapters(model).items() if p.grad is not None}
    assert len(wanted) == 2 * (4 * 8 + 2)
    model.zero_grad()
    found = losses(model, batch, kernels)
    # fp32 sums in another order, as in test_model_loss.py
    assert found[0].mean().item() == pytest.approx(expected["loss/diff"].item(), rel=1e-6)
    assert found[1].mean().item() == pytest.approx(expected["loss/stop"].item(), rel=1e-6)
    found.mean(dim=1).sum().backward()
    for name, parameter in upstream.adapters(model).items():
        largest = wanted[name].abs().max().item()
        assert largest > 0, name
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=0, atol=3e-5 * largest, msg=name)


def test_a_checkpoint_says_who_can_read_it_and_upstream_does_not_find_it(run: RunFolder, settings: Settings) -> None:
    folder = run.checkpoint(10)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors", "step.json"]
    record = read_json(folder / "adapter.json")
    assert record["lora_config"] == settings.tuning.lora_config()
    assert record["beyond_upstream"] == {"locenc_targets": ["q_proj", "v_proj", "k_proj", "o_proj"], "stop_head": True}
    assert "export RUN OUT --merged" in record["readers"]
    lora = upstream.LoRAConfig(**record["lora_config"])
    with upstream.quiet():
        theirs = upstream.VoxCPM2Model.from_local(record["base_model"], optimize=False, device="cpu", lora_config=lora)
    with pytest.raises(FileNotFoundError):
        theirs.load_lora_weights(str(folder))


def test_an_export_that_is_not_merged_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add --merged"):
        checkpoint_door(["export", str(run.root), str(tmp_path / "out"), "--step", "10"])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def merged(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(run, 10, tmp_path_factory.mktemp("merged") / "out", merged=True)


def test_merged_equals_adapted_in_our_forward_and_in_upstreams(
    run: RunFolder, merged: Path, settings: Settings
) -> None:
    batch = micro_batch(ROWS)
    adapted, one = adapted_model(run, settings), upstream.load_model(merged, None, CPU, torch.float32)
    base = upstream.load_model(settings.model.folder(), None, CPU, torch.float32)
    with torch.no_grad():
        ours = [losses(model, batch) for model in (adapted, one, base)]
        theirs = [upstream_losses(model, batch) for model in (adapted, one)]
    # W x + s B (A x) against (W + s B A) x: fp32 sums in another order, through all layers
    torch.testing.assert_close(ours[1], ours[0], rtol=1e-4, atol=1e-5)
    for name in ("loss/diff", "loss/stop"):
        assert theirs[1][name].item() == pytest.approx(theirs[0][name].item(), rel=1e-5)
    for which in (0, 1):
        assert (ours[2][which] - ours[0][which]).abs().max() > 1e-2, "the adapters do nothing: this proves nothing"


def test_adapters_of_each_place_are_in_the_merged_weights(run: RunFolder, merged: Path, settings: Settings) -> None:
    one = upstream.load_model(merged, None, CPU, torch.float32).state_dict()
    base = upstream.load_model(settings.model.folder(), None, CPU, torch.float32).state_dict()
    places = [name.rpartition(".")[0] for name in upstream.adapters(adapted_model(run, settings)) if "lora_A" in name]
    moved = {name for name in base if not torch.equal(one[name], base[name])}
    assert moved == {f"{place}.weight" for place in places}


@pytest.mark.slow
def test_upstreams_own_door_loads_the_merged_export_and_speaks_as_the_adapted_model(
    run: RunFolder, merged: Path, settings: Settings
) -> None:
    with upstream.quiet():
        from voxcpm import VoxCPM

        theirs = VoxCPM.from_pretrained(str(merged), load_denoiser=False, optimize=False, device="cpu").tts_model
    adapted = upstream.load_speaker(settings.model.folder(), run.checkpoint(10), CPU)
    base = upstream.load_speaker(settings.model.folder(), None, CPU)
    spoken = [speak(model, "Hello there.", None, 1, 4, 3, 2.0).wave for model in (theirs, adapted, base)]
    np.testing.assert_allclose(spoken[0], spoken[1], atol=1e-4)  # fp32 sums in another order, fed back four times
    assert np.abs(spoken[2] - spoken[1]).max() > 1e-3


@pytest.mark.slow
def test_such_a_run_is_judged_and_speaks(run: RunFolder, settings: Settings) -> None:
    settings = load(run.root)
    judging = judge(run, settings.validation, sources_of(run))
    assert judging.not_judged == {}
    assert judging.table is not None
    assert set(judging.table["step"].to_pylist()) == {0, 10}
    swapped = first_model(run.checkpoint(0), settings.model.folder, settings.tuning, CPU, torch.float32)  # type: ignore[arg-type]
    put_weights(swapped, run.checkpoint(10), settings.tuning)  # type: ignore[arg-type]
    wanted, found = adapted_model(run, settings).state_dict(), swapped.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    heard = listen(run, settings.listening, settings.model.folder, settings.tuning)  # type: ignore[arg-type]
    assert heard.mute == {}
    waves = {s.step: wave_file(run, s).read_bytes() for s in heard.samples if s.line == heard.samples[0].line}
    assert set(waves) == {0, 10}
    assert waves[0] != waves[10]


@pytest.mark.slow
def test_another_adapter_is_refused(run: RunFolder, cache: Path) -> None:
    other = compose(["+recipe=lora_demo", f"data.cache_dir={cache}", "tuning.rank=4", "tuning.locenc=true"]).tuning
    model = upstream.load_model(run_base(run), other, CPU, torch.float32)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"another adapter \(stop_head: True, not False\)"):
        put_weights(model, run.checkpoint(10), other)  # type: ignore[arg-type]


def run_base(run: RunFolder) -> Path:
    return Path(read_json(run.checkpoint(10) / "adapter.json")["base_model"])
