"""Upstream's model loaded strictly and silently: what does not fit is told, what fits is used as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from voxtrain.fault import InputError
from voxtrain.model import upstream
from voxtrain.model.speaking import speak
from voxtrain.model.tuning import LoraTuning

CPU = torch.device("cpu")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA = LoraTuning(
    rank=2,
    alpha=4,
    dropout=0.0,
    lm=True,
    dit=True,
    projections=False,
    locenc=False,
    stop_head=False,
    lm_targets=ATTENTION,
    dit_targets=ATTENTION,
    projection_targets=(),
    locenc_targets=(),
)


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def both_forms_refuse(folder: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        upstream.load_model(folder, None, CPU, torch.float32)
    with pytest.raises(InputError, match=reason):
        upstream.load_speaker(folder, None, CPU)


def test_missing_unknown_and_reshaped_tensors_are_told_at_once(copy: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["stop_head.weight"]
        tensors["base_lm.layers.0.self_attn.q_proj.lora_A"] = torch.zeros(2, 2)
        tensors["stop_proj.bias"] = torch.zeros(3)

    rewrite(copy / "model.safetensors", change)
    with pytest.raises(InputError) as told:
        upstream.load_model(copy, None, CPU, torch.float32)
    assert [fault.what for fault in told.value.faults] == [
        "1 tensors are missing: stop_head.weight",
        "1 tensors are unknown: base_lm.layers.0.self_attn.q_proj.lora_A",
        "1 tensors have another shape: stop_proj.bias is [3] and should be [128]",
    ]


def test_missing_tensor_is_told_by_the_speaking_form_too(copy: Path) -> None:
    rewrite(copy / "model.safetensors", lambda tensors: tensors.pop("stop_head.weight"))
    both_forms_refuse(copy, "stop_head.weight")


def test_audio_vae_inside_the_weights_is_passed_over(copy: Path, tiny_folder: Path) -> None:
    rewrite(copy / "model.safetensors", lambda tensors: tensors.update({"audio_vae.x": torch.zeros(1)}))
    loaded = upstream.load_model(copy, None, CPU, torch.float32).state_dict()
    assert loaded.keys() == load_file(tiny_folder / "model.safetensors").keys()


def test_broken_weights_are_told(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    both_forms_refuse(copy, "cannot be read")


def test_vae_that_does_not_fit_is_told(copy: Path) -> None:
    rewrite(copy / "audiovae.safetensors", lambda tensors: tensors.pop("encoder.fc_mu.bias"))
    with pytest.raises(InputError, match=r"encoder\.fc_mu\.bias"):
        upstream.load_vae(copy)


def test_vae_file_may_lack_what_the_config_gives(copy: Path) -> None:
    rewrite(copy / "audiovae.safetensors", lambda tensors: tensors.pop("decoder.sr_bin_boundaries"))
    assert upstream.load_vae(copy).decoder.sr_bin_boundaries.tolist() == [20000, 30000, 40000]


def test_pickled_weights_load_alike(copy: Path, tiny_folder: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    torch.save({"state_dict": load_file(copy / "audiovae.safetensors")}, copy / "audiovae.pth")
    (copy / "model.safetensors").unlink()
    (copy / "audiovae.safetensors").unlink()
    expected = upstream.load_model(tiny_folder, None, CPU, torch.float32).state_dict()
    found = upstream.load_model(copy, None, CPU, torch.float32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    wave = np.sin(np.arange(4000) / 20).astype(np.float32)
    assert torch.equal(upstream.load_encoder(copy)(wave), upstream.load_encoder(tiny_folder)(wave))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"t_scheduler": "uniform"}, "a kind that voxtrain does not compute"),
        ({"noise_cond_scale": 0.1, "noise_cond_prob_range": [0.1, 0.2]}, "a kind that voxtrain does not compute"),
        ({"training_cfg_rate": "often"}, "upstream cannot read it: dit_config.cfm_config.training_cfg_rate"),
    ],
)
def test_losses_of_another_kind_are_refused(copy: Path, change: dict, reason: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["dit_config"]["cfm_config"].update(change)
    (copy / "config.json").write_text(json.dumps(config))
    both_forms_refuse(copy, reason)


def test_broken_tokenizer_is_told(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        upstream.load_tokenizer(copy)


def test_training_form_is_bare(tiny_folder: Path) -> None:
    model = upstream.load_model(tiny_folder, None, CPU, torch.float32)
    assert not hasattr(model, "audio_vae")
    assert model.base_lm.kv_cache is None
    assert model.residual_lm.kv_cache is None
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}


def test_training_form_in_bf16(tiny_folder: Path) -> None:
    model = upstream.load_model(tiny_folder, LORA, CPU, torch.bfloat16)
    kinds = {("lora_" in name, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert kinds == {(False, torch.bfloat16, False), (True, torch.float32, True)}


def test_weights_do_not_share_memory_with_the_file(copy: Path) -> None:
    before = (copy / "model.safetensors").read_bytes()
    model = upstream.load_model(copy, None, CPU, torch.float32)
    with torch.no_grad():
        model.stop_head.weight.fill_(1.0)
    assert (copy / "model.safetensors").read_bytes() == before


def test_adapters_begin_as_upstreams_and_follow_the_seed(tiny_folder: Path) -> None:
    one, same, other = (
        {
            n: p.detach()
            for n, p in upstream.adapters(upstream.load_model(tiny_folder, LORA, CPU, torch.float32, s)).items()
        }
        for s in (1, 1, 2)
    )
    assert len(one) == 2 * 4 * 6  # A and B of four projections in six layers: LocEnc has none
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        if name.endswith("lora_B"):
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
            assert tensor.abs().max() <= tensor.shape[1] ** -0.5
            assert tensor.std() == pytest.approx(tensor.shape[1] ** -0.5 / 3**0.5, rel=0.2)


def lora_folder(folder: Path, base: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "lora_weights.safetensors")
    config = {"base_model": str(base), "lora_config": LORA.lora_config()}
    (folder / "lora_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    model = upstream.load_model(tiny_folder, LORA, CPU, torch.float32, seed=7)
    with torch.no_grad():
        tensors = {name: torch.randn_like(parameter) * 0.3 for name, parameter in upstream.adapters(model).items()}
    return lora_folder(tmp_path / "adapter", tiny_folder, tensors)


def test_adapter_loads_whole_and_is_heard(tiny_folder: Path, adapter: Path) -> None:
    saved = load_file(adapter / "lora_weights.safetensors")
    speaker = upstream.load_speaker(tiny_folder, adapter, CPU)
    assert all(torch.equal(p, saved[name]) for name, p in upstream.adapters(speaker).items())
    with upstream.quiet():  # upstream's own way to load it skips nothing
        loaded, skipped = speaker.load_lora_weights(str(adapter))
    assert (sorted(loaded), skipped) == (sorted(saved), [])
    bare = upstream.load_speaker(tiny_folder, None, CPU)
    say = [speak(model, "Hi.", None, 1, 4, 3, 2.0).wave for model in (speaker, bare)]
    assert not np.array_equal(*say)


def test_adapter_that_does_not_fit_is_told(tiny_folder: Path, adapter: Path) -> None:
    rewrite(adapter / "lora_weights.safetensors", lambda tensors: tensors.pop(next(iter(tensors))))
    with pytest.raises(InputError, match="1 tensors are missing"):
        upstream.load_speaker(tiny_folder, adapter, CPU)
    model = upstream.load_model(tiny_folder, LORA, CPU, torch.float32)
    with pytest.raises(InputError, match="1 tensors are missing"):
        upstream.load_adapter(model, adapter)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2560, 2561, 16000])
def test_latents_are_those_of_upstreams_packer(tiny_folder: Path, samples: int) -> None:
    from voxcpm.training.packers import AudioFeatureProcessingPacker

    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    vae = upstream.load_vae(tiny_folder)
    packer = AudioFeatureProcessingPacker(1, 10_000, 4, 16, vae)
    expected, _ = packer.extract_audio_feats(torch.from_numpy(wave))
    found = upstream.load_encoder(tiny_folder)(wave)
    assert found.shape == (-(-samples // 2560), 4, 16)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(found, expected[0])


@pytest.mark.parametrize("wave", [np.zeros(0, np.float32), np.zeros((2, 100), np.float32)])
def test_what_is_no_wave_is_refused(tiny_folder: Path, wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one channel"):
        upstream.load_encoder(tiny_folder)(wave)


def test_vae_key_follows_weights_and_layout(tiny_folder: Path, copy: Path) -> None:
    key = upstream.vae_key(tiny_folder)
    assert upstream.vae_key(copy) == key
    rewrite(copy / "audiovae.safetensors", lambda tensors: tensors["encoder.fc_mu.bias"].add_(1))
    changed = upstream.vae_key(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "patch_size": 2}))
    assert len({key, changed, upstream.vae_key(copy)}) == 3


def test_nothing_is_printed(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    upstream.load_model(tiny_folder, LORA, CPU, torch.float32)
    speaker = upstream.load_speaker(tiny_folder, None, CPU)
    speak(speaker, "Hi.", None, 1, 4, 2, 2.0)
    upstream.load_encoder(tiny_folder)(np.zeros(100, np.float32))
    assert capfd.readouterr() == ("", "")
