"""Our forward over upstream's decoder layers (minicpm4/model.py), without what no loss would see.

The language models go through the positions of all rows one after the other, so that padding costs nothing; in the
last layer of a transformer only those tokens ask, and go on, that are read afterwards. Keys and values are computed for
all. Each layer can be computed again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from voxtrain.model.operators import Operators, Rows, Turns
from voxtrain.model.upstream import MiniCPMModel

Read = slice | Tensor
"""Which tokens of S are read after the last layer: a slice of them, or their places."""
ALL = slice(None)
Attention = Callable[[Tensor, Tensor, Tensor, Read], Tensor]
"""What the tokens that ask hear, from q of these, and from k and v of all."""


def patch_states(
    operators: Operators, transformer: MiniCPMModel, tokens: Tensor, read: slice, *, recompute: bool
) -> Tensor:
    """[N, S, H] -> [N, read, H]: the tokens of each of N patches hear each other."""
    turns = _turns(transformer, torch.arange(tokens.shape[1], device=tokens.device))

    def attention(q: Tensor, k: Tensor, v: Tensor, asking: Read) -> Tensor:
        return operators.patch_attention(q, k, v)

    return _decode(operators, transformer, tokens, turns, attention, read, recompute)


def row_states(
    operators: Operators, transformer: MiniCPMModel, states: Tensor, rows: Rows, read: Read, *, recompute: bool
) -> Tensor:
    """[n, H] -> [read, H]: each position hears those of its row before it, and itself."""

    def attention(q: Tensor, k: Tensor, v: Tensor, asking: Read) -> Tensor:
        if isinstance(asking, Tensor):  # the others of a row ask too, with zeros, and nobody reads what they hear
            q = q.new_zeros(1, k.shape[1], *q.shape[2:]).index_copy(1, asking, q)
        return _some(operators.row_attention(q, k, v, rows), asking)

    turns = _turns(transformer, rows.position)
    return _decode(operators, transformer, states.unsqueeze(0), turns, attention, read, recompute)[0]


def _turns(transformer: MiniCPMModel, position: Tensor) -> Turns | None:
    if transformer.rope_emb is None:
        return None
    cosine, sine = transformer.rope_emb(position)
    return cosine, sine


def _decode(
    operators: Operators,
    transformer: MiniCPMModel,
    hidden: Tensor,
    turns: Turns | None,
    attention: Attention,
    read: Read,
    recompute: bool,
) -> Tensor:
    """minicpm4/model.py: forward."""
    for layer in transformer.layers:
        asking = read if layer is transformer.layers[-1] else ALL
        step = partial(_layer, operators, layer, turns=turns, attention=attention, asking=asking)
        hidden = checkpoint(step, hidden, use_reentrant=False, preserve_rng_state=False) if recompute else step(hidden)
    return operators.norm(transformer.norm, hidden)


def _layer(
    operators: Operators, layer: Any, hidden: Tensor, *, turns: Turns | None, attention: Attention, asking: Read
) -> Tensor:
    """minicpm4/model.py: MiniCPMDecoderLayer.forward. [N, S, H] -> [N, asking, H]."""
    scale = layer.scale_depth / math.sqrt(layer.num_hidden_layers) if layer.use_mup else 1.0
    normed = operators.norm(layer.input_layernorm, hidden)
    heard = _attended(operators, layer.self_attn, normed, turns, attention, asking)
    hidden = _some(hidden, asking) + (heard * scale if layer.use_mup else heard)
    fed = operators.feed_forward(layer.mlp, operators.norm(layer.post_attention_layernorm, hidden))
    return hidden + (fed * scale if layer.use_mup else fed)


def _attended(
    operators: Operators, block: Any, normed: Tensor, turns: Turns | None, attention: Attention, asking: Read
) -> Tensor:
    def heads(projection: Any, tokens: Tensor) -> Tensor:
        values = operators.linear(projection, tokens)
        return values.view(*values.shape[:2], values.shape[2] // block.head_dim, block.head_dim)

    q, k, v = heads(block.q_proj, _some(normed, asking)), heads(block.k_proj, normed), heads(block.v_proj, normed)
    if turns is not None:
        cosine, sine = turns
        q, k = operators.turn(q, (cosine[asking], sine[asking])), operators.turn(k, turns)
    return operators.linear(block.o_proj, attention(q, k, v, asking))


def _some(tokens: Tensor, asking: Read) -> Tensor:
    """[N, S, H] -> [N, asking, H]."""
    return tokens.index_select(1, asking) if isinstance(asking, Tensor) else tokens[:, asking].contiguous()
