"""Our forward over upstream's decoder layers for fp32 on a CPU: what layers.py computes, by operators of our own.

Tokens are laid in columns at the entry, filled up with zeros to whole vectors, and back in rows at the end. What is
filled up belongs to nobody's patch or row, and its gradients are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from voxtrain.model import layers
from voxtrain.model.cpu import feed_forward, self_attention
from voxtrain.model.cpu.attention import Angles, Patches, Stretches, attention
from voxtrain.model.cpu.columns import feed_forward_onto, heads, linear_onto, normed_beside
from voxtrain.model.cpu.lanes import LANES
from voxtrain.model.layers import Read, Rows

Some = Callable[[Tensor], Tensor]
"""Of tokens in columns those that ask in the last layer."""


def patch_states(transformer: Any, tokens: Tensor, read: slice, *, recompute: bool) -> Tensor:
    """[N, S, H] -> [N, read, H]: the tokens of each of N patches hear each other."""
    if tokens.numel() == 0:
        return layers.patch_states(transformer, tokens, read, recompute=recompute)
    patches, each, width = tokens.shape
    filled = patches + -patches % LANES
    columns = F.pad(tokens.permute(2, 1, 0), (0, filled - patches)).contiguous().view(width, each * filled)
    angles = _angles(transformer, torch.arange(each))
    every = Patches(filled, each, each, angles, angles)
    asking = angles.at(read)
    last = Patches(filled, len(asking.cosine), each, angles, asking)

    def some(values: Tensor) -> Tensor:
        return values.view(-1, each, filled)[:, read].contiguous().view(-1, last.asking * filled)

    states = _decode(transformer, columns, every, last, some, recompute)
    return states.view(width, last.asking, filled)[:, :, :patches].permute(2, 1, 0)


def row_states(transformer: Any, states: Tensor, rows: Rows, read: Read, *, recompute: bool) -> Tensor:
    """[n, H] -> [read, H]: each position hears those of its row before it, and itself."""
    spare = -len(states) % LANES
    columns = F.pad(states.t(), (0, spare)).contiguous()
    lengths = (*rows.lengths, spare) if spare else rows.lengths  # what is filled up is a row of its own
    position = torch.cat((rows.position, torch.arange(spare)))
    ends, longest = torch.tensor((0, *lengths)).cumsum(0), max(lengths)
    angles = _angles(transformer, position)
    every = Stretches(ends, ends, position + 1, longest, angles, angles)
    if isinstance(read, slice):
        return _decode(transformer, columns, every, every, None, recompute)[:, : len(states)][:, read].t()
    # filled up by the last one, which asks again: nobody reads what it hears then
    asking = torch.cat((read, read[-1:].expand(-len(read) % LANES)))
    q_ends = torch.searchsorted(read, ends)
    q_ends = q_ends.where(q_ends < len(read), len(asking))
    last = Stretches(q_ends, ends, position[asking] + 1, longest, angles, angles.at(asking))
    states = _decode(transformer, columns, every, last, lambda values: values.index_select(1, asking), recompute)
    return states[:, : len(read)].t()


def _angles(transformer: Any, position: Tensor) -> Angles:
    """Without a rotary embedding nothing is turned."""
    half = transformer.layers[0].self_attn.head_dim // 2
    if transformer.rope_emb is None:
        return Angles(torch.ones(len(position), half), torch.zeros(len(position), half))
    cosine, sine = transformer.rope_emb(position)
    return Angles(cosine, sine).at((slice(None), slice(half)))  # their second half repeats the first


def _decode(
    transformer: Any,
    hidden: Tensor,
    every: Patches | Stretches,
    last: Patches | Stretches,
    some: Some | None,
    recompute: bool,
) -> Tensor:
    """minicpm4/model.py: forward, on tokens in columns."""
    for layer in transformer.layers:
        at_end = layer is transformer.layers[-1]
        step = partial(_layer, layer, hearing=last if at_end else every, some=some if at_end else None)
        hidden = checkpoint(step, hidden, use_reentrant=False, preserve_rng_state=False) if recompute else step(hidden)
    return normed_beside(transformer.norm, hidden)[1]


def _layer(layer: Any, hidden: Tensor, *, hearing: Patches | Stretches, some: Some | None) -> Tensor:
    """minicpm4/model.py: MiniCPMDecoderLayer.forward. [H, tokens] -> [H, asking]."""
    scale = layer.scale_depth / math.sqrt(layer.num_hidden_layers) if layer.use_mup else 1.0
    if some is None and self_attention.is_taken(layer):
        hidden = self_attention.self_attention(layer, hidden, hearing)
    else:
        past, normed = normed_beside(layer.input_layernorm, hidden)
        q, kv = heads(layer.self_attn, normed, normed if some is None else some(normed))
        heard = attention(q, kv, layer.self_attn.head_dim, hearing)
        hidden = linear_onto(layer.self_attn.o_proj, heard, past if some is None else some(past), scale)
    if feed_forward.is_taken(layer, hidden):
        return feed_forward.feed_forward(layer, hidden)
    past, normed = normed_beside(layer.post_attention_layernorm, hidden)
    return feed_forward_onto(layer.mlp, normed, past, scale)
