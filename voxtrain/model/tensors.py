"""The names and shapes of what learns, by arithmetic: the bytes of a checkpoint are known without torch.

They come in the order in which upstream's constructors make them (voxcpm2.py: VoxCPM2Model; minicpm4/model.py; locenc;
locdit/local_dit_v2.py), which numbers the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from voxtrain.model.size import Architecture, shape

Shape = tuple[int, ...]


def learnt_shapes(architecture: Architecture, lora: Mapping[str, Any] | None) -> dict[str, Shape]:
    """Name -> shape of each tensor that learns: all but the AudioVAE's, or the adapters that `lora` places.

    lora: see LoraTuning.adapter_config; None under full fine-tuning.
    """
    whole = dict(_tensors(architecture))
    if lora is None:
        return whole
    adapted = (name.removesuffix(".weight") for name in whole if name.endswith(".weight"))
    found: dict[str, Shape] = {}
    for name in adapted:
        if _has_adapter(name, lora):
            outputs, inputs = whole[f"{name}.weight"]
            found |= {f"{name}.lora_A": (lora["r"], inputs), f"{name}.lora_B": (outputs, lora["r"])}
    return found


def _has_adapter(name: str, lora: Mapping[str, Any]) -> bool:
    part, last = name.partition(".")[0], name.rpartition(".")[2]
    within: dict[str, Sequence[str]] = {
        "base_lm": lora["target_modules_lm"] if lora["enable_lm"] else (),
        "residual_lm": lora["target_modules_lm"] if lora["enable_lm"] else (),
        "feat_encoder": lora["locenc_targets"],
        "feat_decoder": lora["target_modules_dit"] if lora["enable_dit"] else (),
    }
    outside = [*(lora["target_proj_modules"] if lora["enable_proj"] else ())]
    outside += ["stop_proj", "stop_head"] if lora["stop_head"] else []
    return last in within.get(part, ()) or name in outside


def _tensors(architecture: Architecture) -> Iterator[tuple[str, Shape]]:
    lm = architecture["lm_config"]
    hidden, local = lm["hidden_size"], architecture["encoder_config"]["hidden_dim"]
    dim, dit = architecture["feat_dim"], architecture["dit_config"]["hidden_dim"]
    latent = architecture.get("scalar_quantization_latent_dim", 512)
    if lm["vocab_size"]:
        yield "base_lm.embed_tokens.weight", (lm["vocab_size"], hidden)
    yield from _decoder(architecture, "base_lm", "base_lm")
    yield from _decoder(architecture, "residual_lm", "residual_lm")
    yield "feat_encoder.special_token", (1, 1, 1, local)
    yield from _linear("feat_encoder.in_proj", dim, local)
    yield from _decoder(architecture, "feat_encoder", "feat_encoder.encoder")
    yield from _linear("feat_decoder.estimator.in_proj", dim, dit)
    yield from _linear("feat_decoder.estimator.cond_proj", dim, dit)
    yield from _linear("feat_decoder.estimator.out_proj", dit, dim)
    for times in ("time_mlp", "delta_time_mlp"):
        for number in (1, 2):
            yield from _linear(f"feat_decoder.estimator.{times}.linear_{number}", dit, dit)
    yield from _decoder(architecture, "feat_decoder", "feat_decoder.estimator.decoder")
    yield from _linear("fsq_layer.in_proj", hidden, latent)
    yield from _linear("fsq_layer.out_proj", latent, hidden)
    yield from _linear("enc_to_lm_proj", local, hidden)
    yield from _linear("lm_to_dit_proj", hidden, dit)
    yield from _linear("res_to_dit_proj", hidden, dit)
    yield from _linear("fusion_concat_proj", 2 * hidden, hidden)
    yield from _linear("stop_proj", hidden, hidden)
    yield "stop_head.weight", (2, hidden)


def _decoder(architecture: Architecture, name: str, prefix: str) -> Iterator[tuple[str, Shape]]:
    width, feed, heads, layers, channels = shape(architecture, name)
    keys = architecture["lm_config"]["num_key_value_heads"] * channels
    for number in range(layers):
        layer = f"{prefix}.layers.{number}"
        yield f"{layer}.self_attn.q_proj.weight", (heads * channels, width)
        yield f"{layer}.self_attn.k_proj.weight", (keys, width)
        yield f"{layer}.self_attn.v_proj.weight", (keys, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, heads * channels)
        yield f"{layer}.mlp.gate_proj.weight", (feed, width)
        yield f"{layer}.mlp.up_proj.weight", (feed, width)
        yield f"{layer}.mlp.down_proj.weight", (width, feed)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield f"{prefix}.norm.weight", (width,)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)
