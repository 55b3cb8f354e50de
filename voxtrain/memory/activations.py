"""What forward and backward hold beside weights, gradients and optimizer state, by arithmetic. Imports no torch.

The terms of a decoder layer follow upstream's code (minicpm4/model.py) tensor by tensor; the constants for what lies
outside the layers are fitted to a count of live bytes of our own loss on the CPU (full width, one to three layers, 122
to 242 positions), whose peaks the sum meets within 10 % (in fp32 without autocast 15 %). For upstream's forward of the
whole model it meets facts measured on fake tensors within 4 %. Under LoRA it is up to a third too much, since frozen
layers do not keep their inputs. CUDA's attention may keep other tensors: a plan traced on fake tensors will
replace this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from voxtrain.model.size import parameter_counts, shape

Numbers = Literal["fp32", "autocast", "bf16"]
"""What is computed with: fp32 throughout; fp32 weights under bf16 autocast; bf16 weights, where autocast has nothing to
copy, so that the same is held with it and without (under adapters too, whose own copies are small and left out)."""
OUTSIDE_PADDED = {"fp32": 31.0, "autocast": 23.5, "bf16": 23.6}
"""Bytes that a padded position keeps outside the layers, per value of the language models' width."""
OUTSIDE_LOCAL = {"fp32": 14.1, "autocast": 10.6, "bf16": 11.1}
"""Bytes that a token of LocEnc or LocDiT keeps outside the layers, per value of its width."""
MODULES = ("base_lm", "residual_lm", "feat_encoder", "feat_decoder")
"""The four transformers."""


@dataclass(frozen=True, slots=True)
class Longest:
    """The most demanding micro-batch of a run."""

    rows: int  # rows in the micro-batch
    padded_positions: int  # rows x the longest row, padding included
    audio_positions: int  # what LocEnc encodes: target and reference audio
    loss_positions: int  # what LocDiT decodes: target audio
    micro_batches: int  # in one optimizer step


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes at the moment of backward when most is held, apart from gradients."""

    kept: int  # by forward, for backward
    passing: int  # of the one layer that backward is at: computed again where it is, and a gradient on its way
    copies: int  # bf16 copies that autocast made of fp32 weights


def activations(architecture: Mapping[str, Any], longest: Longest, *, numbers: Numbers, recompute: bool) -> Activations:
    """Bytes of activations for one micro-batch.

    recompute: activation checkpointing of every decoder layer. LocEnc runs at audio positions alone, LocDiT at loss
    positions alone.
    """
    autocast = numbers == "autocast"
    kept = _outside(architecture, longest, numbers)
    copies = _copies_outside(architecture) if autocast else 0
    passing = passing_copies = 0
    for name in MODULES:
        layers, tokens = shape(architecture, name)[3], _tokens(architecture, name, longest)
        one = tokens * _layer_bytes(architecture, name, numbers)
        one_copies = 2 * _layer_weights(architecture, name) if autocast else 0
        gradient = _largest_weight(architecture, name) * (4 if numbers == "fp32" else 2)  # on its way to the kept one
        if recompute:
            kept += layers * tokens * _input_bytes(architecture, name, numbers)
            if one + one_copies + gradient > passing + passing_copies:
                passing, passing_copies = one + gradient, one_copies
        else:
            kept += layers * one
            copies += layers * one_copies
            passing = max(passing, gradient)
    return Activations(kept, passing, copies + passing_copies)


def _tokens(architecture: Mapping[str, Any], name: str, longest: Longest) -> int:
    patch = architecture["patch_size"]
    if name == "feat_encoder":
        return longest.audio_positions * int(patch + 1)  # a token in front of each patch
    if name == "feat_decoder":
        return longest.loss_positions * int(
            2 + 1 + 2 * patch
        )  # two of condition, the time, the patch before, the patch
    return longest.padded_positions


def _layer_bytes(architecture: Mapping[str, Any], name: str, numbers: Numbers) -> int:
    """Bytes that one token leaves behind in one decoder layer: both norms, q, k, v, attention, feed-forward."""
    width, feed, heads, _, channels = shape(architecture, name)
    queries, keys = heads * channels, _key_heads(architecture) * channels
    if numbers == "fp32":
        return 24 * width + 12 * queries + 8 * keys + 16 * feed
    # under autocast norms are in fp32, and leave a bf16 copy of their result for every linear layer that reads it; of
    # bf16 hidden states only the fp32 copy that a norm squares
    norms = 26 if numbers == "autocast" else 20
    return norms * width + 6 * queries + 4 * keys + 8 * feed


def _key_heads(architecture: Mapping[str, Any]) -> int:
    return int(architecture["lm_config"]["num_key_value_heads"])


def _layer_weights(architecture: Mapping[str, Any], name: str) -> int:
    width, feed, heads, _, channels = shape(architecture, name)
    keys = _key_heads(architecture) * channels
    return 2 * width * heads * channels + 2 * width * keys + 3 * width * feed


def _largest_weight(architecture: Mapping[str, Any], name: str) -> int:
    width, feed, heads, _, channels = shape(architecture, name)
    return width * max(feed, heads * channels)


def _input_bytes(architecture: Mapping[str, Any], name: str, numbers: Numbers) -> int:
    """Bytes of one token's input to a layer: as its weights, but bf16 where a linear layer under autocast made it."""
    made_by_linear = numbers == "autocast" and name in ("residual_lm", "feat_decoder")
    return shape(architecture, name)[0] * (2 if made_by_linear or numbers == "bf16" else 4)


def _outside(architecture: Mapping[str, Any], longest: Longest, numbers: Numbers) -> int:
    """Bytes kept by norms, projections, the stop head and the losses."""
    count = OUTSIDE_PADDED[numbers] * shape(architecture, "base_lm")[0] * longest.padded_positions
    for name in ("feat_encoder", "feat_decoder"):
        tokens = _tokens(architecture, name, longest)
        count += OUTSIDE_LOCAL[numbers] * shape(architecture, name)[0] * tokens
    return int(count)


def _copies_outside(architecture: Mapping[str, Any]) -> int:
    """Bytes of the bf16 copies of linear layers that are not recomputed and whose input has a gradient."""
    width = shape(architecture, "feat_decoder")[0]
    return 2 * (parameter_counts(architecture)["fsq_projections_stop"] + 2 * width * width)
