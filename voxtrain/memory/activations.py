"""What forward and backward hold beside weights, gradients and optimizer state, by arithmetic. Imports no torch.

The terms of a decoder layer follow upstream's code (minicpm4/model.py) tensor by tensor; the constants for what lies
outside the layers are fitted to a count of live bytes of our own loss on the CPU (full width, one to three layers, 122
to 242 positions), whose peaks the sum meets within 10 % (without autocast 15 %). For upstream's forward of the whole
model it meets facts measured on fake tensors within 4 %. Under LoRA it is up to a third too much, since frozen layers
do not keep their inputs. CUDA's attention may keep other tensors: a plan traced on fake tensors will replace this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtrain.model.size import parameter_counts, shape

OUTSIDE_PADDED = {True: 23.5, False: 31.0}
"""Bytes that a padded position keeps outside the layers, per value of the language models' width, by autocast."""
OUTSIDE_LOCAL = {True: 10.6, False: 14.1}
"""Bytes that a token of LocEnc or LocDiT keeps outside the layers, per value of its width, by autocast."""
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


def activations(architecture: Mapping[str, Any], longest: Longest, *, autocast: bool, recompute: bool) -> Activations:
    """Bytes of activations for one micro-batch.

    recompute: activation checkpointing of every decoder layer. LocEnc runs at audio positions alone, LocDiT at loss
    positions alone.
    """
    kept = _outside(architecture, longest, autocast)
    copies = _copies_outside(architecture) if autocast else 0
    passing = passing_copies = 0
    for name in MODULES:
        layers, tokens = shape(architecture, name)[3], _tokens(architecture, name, longest)
        one = tokens * _layer_bytes(architecture, name, autocast)
        one_copies = 2 * _layer_weights(architecture, name) if autocast else 0
        gradient = _largest_weight(architecture, name) * (2 if autocast else 4)  # on its way to the fp32 one
        if recompute:
            kept += layers * tokens * _input_bytes(architecture, name, autocast)
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


def _layer_bytes(architecture: Mapping[str, Any], name: str, autocast: bool) -> int:
    """Bytes that one token leaves behind in one decoder layer: both norms, q, k, v, attention, feed-forward."""
    width, feed, heads, _, channels = shape(architecture, name)
    queries, keys = heads * channels, _key_heads(architecture) * channels
    if autocast:  # norms in fp32, and a bf16 copy of their result for every linear layer that reads it
        return 26 * width + 6 * queries + 4 * keys + 8 * feed
    return 24 * width + 12 * queries + 8 * keys + 16 * feed


def _key_heads(architecture: Mapping[str, Any]) -> int:
    return int(architecture["lm_config"]["num_key_value_heads"])


def _layer_weights(architecture: Mapping[str, Any], name: str) -> int:
    width, feed, heads, _, channels = shape(architecture, name)
    keys = _key_heads(architecture) * channels
    return 2 * width * heads * channels + 2 * width * keys + 3 * width * feed


def _largest_weight(architecture: Mapping[str, Any], name: str) -> int:
    width, feed, heads, _, channels = shape(architecture, name)
    return width * max(feed, heads * channels)


def _input_bytes(architecture: Mapping[str, Any], name: str, autocast: bool) -> int:
    """Bytes of one token's input to a layer: fp32, but in bf16 where a linear layer under autocast made it."""
    made_by_linear = autocast and name in ("residual_lm", "feat_decoder")
    return shape(architecture, name)[0] * (2 if made_by_linear else 4)


def _outside(architecture: Mapping[str, Any], longest: Longest, autocast: bool) -> int:
    """Bytes kept by norms, projections, the stop head and the losses."""
    count = OUTSIDE_PADDED[autocast] * shape(architecture, "base_lm")[0] * longest.padded_positions
    for name in ("feat_encoder", "feat_decoder"):
        tokens = _tokens(architecture, name, longest)
        count += OUTSIDE_LOCAL[autocast] * shape(architecture, name)[0] * tokens
    return int(count)


def _copies_outside(architecture: Mapping[str, Any]) -> int:
    """Bytes of the bf16 copies of linear layers that are not recomputed and whose input has a gradient."""
    width = shape(architecture, "feat_decoder")[0]
    return 2 * (parameter_counts(architecture)["fsq_projections_stop"] + 2 * width * width)
