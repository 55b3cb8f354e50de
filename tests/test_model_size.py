"""Counts by arithmetic are the published ones, and those of the real adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from voxtrain.composition import conf_folder
from voxtrain.model.size import lora_parameter_count, parameter_counts, samples_per_position, training_cfg_rate
from voxtrain.model.tuning import LoraTuning

PUBLISHED = {
    "base_lm": 1_471_744_000,
    "residual_lm": 377_522_176,
    "feat_encoder": 207_711_232,
    "feat_decoder": 212_040_768,
    "fsq_projections_stop": 20_986_368,
    "trainable": 2_290_004_544,
    "audio_vae": 94_213_954,
}


@pytest.fixture
def released() -> dict:
    return OmegaConf.to_container(OmegaConf.load(conf_folder() / "model" / "voxcpm2.yaml"))["architecture"]


def lora(**changes: object) -> LoraTuning:
    option = OmegaConf.to_container(OmegaConf.load(conf_folder() / "tuning" / "lora.yaml"))
    target = get_class(option.pop("_target_"))
    assert target is LoraTuning
    return LoraTuning.model_validate({**option, **changes})


def test_released_counts_are_the_published_ones(released: dict) -> None:
    assert parameter_counts(released) == PUBLISHED


def test_option_holds_the_released_config(released: dict, shared: Path) -> None:
    assert released == json.loads((shared / "voxcpm2_config.json").read_text())


@pytest.mark.parametrize("rank", [1, 8, 32])
def test_released_adapters(released: dict, rank: int) -> None:
    assert lora_parameter_count(released, lora(rank=rank).adapter_config()) == 565_248 * rank


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lm": False},
        {"dit": False},
        {"projections": True},
        {"lm_targets": ("q_proj", "down_proj"), "dit_targets": ("gate_proj", "up_proj", "k_proj")},
        {"lm": False, "dit": False, "projections": True, "projection_targets": ("res_to_dit_proj",)},
        {"locenc": True, "locenc_targets": ("q_proj", "v_proj", "down_proj")},
        {"lm": False, "dit": False, "stop_head": True},
    ],
)
def test_adapters_of_the_real_model(tiny_folder: Path, tiny, changes: dict) -> None:
    from voxtrain.model.upstream import adapters, load_model

    tuning = lora(rank=3, **changes)
    model = load_model(tiny_folder, tuning, torch.device("cpu"), torch.float32)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learning == sum(p.numel() for p in adapters(model).values())
    assert learning == lora_parameter_count(tiny.architecture, tuning.adapter_config())
    assert learning > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"depthwise": False},
        {"use_noise_block": True},
        {"sr_bin_boundaries": None},
        {"cond_type": "add"},
        {"cond_type": "concat", "cond_dim": 5, "cond_out_layer": True},
    ],
)
def test_other_audio_vaes(tiny, changes: dict) -> None:
    from voxtrain.model.upstream import build_vae

    architecture = {**tiny.architecture, "audio_vae_config": {**tiny.architecture["audio_vae_config"], **changes}}
    real = sum(p.numel() for p in build_vae(architecture).parameters())
    assert parameter_counts(architecture)["audio_vae"] == real


def test_rates(released: dict) -> None:
    assert samples_per_position(released) == 2560  # 6.25 positions a second at 16 kHz
    assert training_cfg_rate(released) == 0.1
