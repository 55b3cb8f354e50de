"""How many parameters an architecture has, by arithmetic: plans need no weights and no torch.

The counts follow upstream's constructors (voxcpm2.py: VoxCPM2Model; minicpm4/model.py; locenc; locdit/local_dit_v2.py;
audio_vae_v2.py) and give the released model's counts exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

Architecture = Mapping[str, Any]
Linears = dict[str, tuple[int, int]]  # name -> (inputs, outputs)


def parameter_counts(architecture: Architecture) -> dict[str, int]:
    """Parameters of each module, `trainable` (their sum) and, apart from it, `audio_vae`."""
    lm = architecture["lm_config"]
    hidden, local = lm["hidden_size"], architecture["encoder_config"]["hidden_dim"]
    dim, dit = architecture["feat_dim"], architecture["dit_config"]["hidden_dim"]
    latent = architecture.get("scalar_quantization_latent_dim", 512)
    projections = _linear(local, hidden) + 2 * _linear(hidden, dit) + _linear(2 * hidden, hidden)
    counts = {
        "base_lm": lm["vocab_size"] * hidden + _decoder(architecture, "base_lm"),
        "residual_lm": _decoder(architecture, "residual_lm"),
        "feat_encoder": local + _linear(dim, local) + _decoder(architecture, "feat_encoder"),
        "feat_decoder": (2 * _linear(dim, dit) + _linear(dit, dim) + 4 * _linear(dit, dit))
        + _decoder(architecture, "feat_decoder"),
        "fsq_projections_stop": _linear(hidden, latent)
        + _linear(latent, hidden)
        + projections
        + _linear(hidden, hidden)
        + 2 * hidden,
    }
    return {**counts, "trainable": sum(counts.values()), "audio_vae": _audio_vae(architecture["audio_vae_config"])}


def lora_parameter_count(architecture: Architecture, lora: Mapping[str, Any]) -> int:
    """Parameters of the adapters that `lora` places (LoraTuning.adapter_config; voxcpm2.py: _apply_lora)."""
    rank, count = lora["r"], 0
    if lora["enable_lm"]:
        for name in ("base_lm", "residual_lm"):
            count += shape(architecture, name)[3] * _adapters(_layer(architecture, name), lora["target_modules_lm"])
    if lora["enable_dit"]:
        layers, targets = shape(architecture, "feat_decoder")[3], lora["target_modules_dit"]
        count += layers * _adapters(_layer(architecture, "feat_decoder"), targets)
    if lora["enable_proj"]:
        count += _adapters(_projections(architecture), lora["target_proj_modules"])
    layers = shape(architecture, "feat_encoder")[3]
    count += layers * _adapters(_layer(architecture, "feat_encoder"), lora["locenc_targets"])
    if lora["stop_head"]:
        hidden = architecture["lm_config"]["hidden_size"]
        count += (hidden + hidden) + (hidden + 2)  # stop_proj and stop_head
    return int(rank * count)


def training_cfg_rate(architecture: Architecture) -> float:
    """The share of positions whose condition is dropped in training; upstream's default where the key is left out."""
    return float(architecture["dit_config"]["cfm_config"].get("training_cfg_rate", 0.1))  # unified_cfm.py: CfmConfig


def shape(architecture: Architecture, name: str) -> tuple[int, int, int, int, int]:
    """(width, feed-forward width, heads, layers, values in a head) of one of the four transformers."""
    lm = architecture["lm_config"]
    if name in ("base_lm", "residual_lm"):
        layers = lm["num_hidden_layers"] if name == "base_lm" else architecture["residual_lm_num_layers"]
        sizes = (lm["hidden_size"], lm["intermediate_size"], lm["num_attention_heads"], layers)
        channels = lm.get("kv_channels")
    else:
        part = architecture["encoder_config" if name == "feat_encoder" else "dit_config"]
        sizes = (part["hidden_dim"], part["ffn_dim"], part["num_heads"], part["num_layers"])
        channels = part.get("kv_channels")
    return (*sizes, channels or sizes[0] // sizes[2])


def _layer(architecture: Architecture, name: str) -> Linears:
    width, feed, heads, _, channels = shape(architecture, name)
    keys = architecture["lm_config"]["num_key_value_heads"] * channels
    return {
        "q_proj": (width, heads * channels),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "o_proj": (heads * channels, width),
        "gate_proj": (width, feed),
        "up_proj": (width, feed),
        "down_proj": (feed, width),
    }


def _projections(architecture: Architecture) -> Linears:
    hidden, dit = architecture["lm_config"]["hidden_size"], architecture["dit_config"]["hidden_dim"]
    return {
        "enc_to_lm_proj": (architecture["encoder_config"]["hidden_dim"], hidden),
        "lm_to_dit_proj": (hidden, dit),
        "res_to_dit_proj": (hidden, dit),
        "fusion_concat_proj": (2 * hidden, hidden),
    }


def _decoder(architecture: Architecture, name: str) -> int:
    width, _, _, layers, _ = shape(architecture, name)
    weights = sum(inputs * outputs for inputs, outputs in _layer(architecture, name).values())
    return int(layers * (weights + 2 * width) + width)  # two norms in each layer and one at the end


def _adapters(linears: Linears, targets: Sequence[str]) -> int:
    return sum(inputs + outputs for name, (inputs, outputs) in linears.items() if name in targets)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _audio_vae(config: Architecture) -> int:
    encoder, decoder = config["encoder_rates"], config["decoder_rates"]
    latent, depthwise = config["latent_dim"], config.get("depthwise", True)
    count = _conv(1, config["encoder_dim"], 7)
    for width, rate in _widths(config["encoder_dim"], encoder, 2):
        count += _residual_units(width, width if depthwise else 1) + width + _conv(width, 2 * width, 2 * rate)
    width = config["encoder_dim"] * 2 ** len(encoder)
    count += 2 * _conv(width, latent, 3)
    wide = config["decoder_dim"]
    first = _conv(latent, latent, 7, latent) + _conv(latent, wide, 1) if depthwise else _conv(latent, wide, 7)
    count += first
    for number, rate in enumerate(decoder):
        inputs, outputs = wide // 2**number, wide // 2 ** (number + 1)
        transposed = inputs * outputs * 2 * rate + inputs + outputs  # weight norm's gain lies over the inputs here
        noise = outputs * outputs + outputs if config.get("use_noise_block", False) else 0
        count += inputs + transposed + noise + _residual_units(outputs, outputs if depthwise else 1)
        count += _rate_condition(config, inputs)
    last = wide // 2 ** len(decoder)
    return int(count + last + _conv(last, 1, 7))


def _widths(start: int, rates: Sequence[int], factor: int) -> Iterator[tuple[int, int]]:
    for number, rate in enumerate(rates):
        yield start * factor**number, rate


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
    return outputs * inputs // groups * kernel + 2 * outputs  # weight norm's gain and the bias


def _residual_units(width: int, groups: int) -> int:
    return 3 * (2 * width + _conv(width, width, 7, groups) + _conv(width, width, 1))


def _rate_condition(config: Architecture, width: int) -> int:
    if config.get("sr_bin_boundaries", True) is None:
        return 0
    boundaries = config.get("sr_bin_boundaries", [20000, 30000, 40000])
    buckets, kind = len(boundaries) + 1, config.get("cond_type", "scale_bias")
    extra = config.get("cond_dim", 128) if kind == "concat" else 0
    embedded = buckets * (extra or width * (2 if kind.startswith("scale_bias") else 1))
    inside = width + extra
    return embedded + (inside + _conv(inside, width, 1) if config.get("cond_out_layer", False) else 0)


def samples_per_position(architecture: Architecture) -> int:
    """Input samples that one audio position stands for: the encoder's hop times the patch size."""
    return int(prod(architecture["audio_vae_config"]["encoder_rates"]) * architecture["patch_size"])
