"""The training loss: our own forward over upstream's modules (voxcpm2.py: VoxCPM2Model.forward), equal to upstream's.

What differs is work, never the result. LocEnc runs at audio positions alone and LocDiT at loss positions alone:
upstream runs both everywhere and multiplies by zero. Random draws come with the batch. Each decoder layer can be
recomputed in the backward pass, in all four transformers. Tests compare loss and every gradient with upstream's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxtrain.batch import Draws, MicroBatch
from voxtrain.model.upstream import MiniCPMModel, VoxCPM2Model


@dataclass(frozen=True, slots=True)
class PositionLosses:
    """One value for each loss position of a micro-batch, in row-major order."""

    diff: Tensor  # [L] float32, squared error of the flow, mean over the patch
    stop: Tensor  # [L] float32, cross-entropy of the stop prediction
    row: Tensor  # [L] int64, the row in the micro-batch


def position_losses(model: VoxCPM2Model, batch: MicroBatch, *, activation_checkpointing: bool) -> PositionLosses:
    """Both losses at every loss position of a micro-batch that lies on the model's device.

    Computes in upstream's dtype under autocast, in that of the weights without.
    """
    dtype = compute_dtype(model, batch.text_tokens.device)
    feats = batch.audio_feats.to(dtype)
    lm_hidden, residual_hidden = _hidden(model, batch, feats, dtype, activation_checkpointing)
    before_lm, before_residual, condition = (
        _before(hidden)[batch.loss_mask] for hidden in (lm_hidden, residual_hidden, feats)
    )
    mu = torch.cat((model.lm_to_dit_proj(before_lm), model.res_to_dit_proj(before_residual)), dim=-1)
    diff = _flow_loss(model, feats[batch.loss_mask], mu, condition, batch.draws, activation_checkpointing)
    logits = model.stop_head(model.stop_actn(model.stop_proj(before_lm)))
    stop = F.cross_entropy(logits, batch.stop_labels[batch.loss_mask], reduction="none")
    row = batch.loss_mask.nonzero()[:, 0]
    return PositionLosses(diff.float(), stop.float(), row)


def row_means(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Means of `values` [L] over the positions of each row: [B]. The packer refuses a row without a loss position."""
    member = row.unsqueeze(0) == torch.arange(rows, device=row.device).unsqueeze(1)  # [B, L]
    return (member * values).sum(dim=1) / member.sum(dim=1)  # index_add would add in any order on CUDA


def compute_dtype(model: VoxCPM2Model, device: torch.device) -> torch.dtype:
    """What inputs are cast to: upstream's `_dtype()` where autocast adapts the weights to it, else the weights' own."""
    if torch.is_autocast_enabled(device.type):
        own: torch.dtype = model._dtype()
        return own
    weights: torch.dtype = model.stop_head.weight.dtype
    return weights


def _hidden(
    model: VoxCPM2Model, batch: MicroBatch, feats: Tensor, dtype: torch.dtype, recompute: bool
) -> tuple[Tensor, Tensor]:
    """Hidden states of both language models, each [B, T, H]."""
    is_audio, is_text = batch.audio_mask.unsqueeze(-1), batch.text_mask.unsqueeze(-1).to(dtype)
    heard = model.enc_to_lm_proj(_local_encoding(model, feats[batch.audio_mask], recompute))  # [A, H]
    lm = model.config.lm_config
    embedded = model.base_lm.embed_tokens(batch.text_tokens) * (lm.scale_emb if lm.use_mup else 1.0)
    audio_embedded = torch.zeros(embedded.shape, dtype=heard.dtype, device=heard.device)
    audio_embedded = audio_embedded.masked_scatter(is_audio, heard)
    states = _decode(model.base_lm, is_text * embedded + audio_embedded, True, recompute).to(dtype)
    states = model.fsq_layer(states) * is_audio.to(dtype) + states * is_text
    fused = model.fusion_concat_proj(torch.cat((states, audio_embedded), dim=-1))
    return states, _decode(model.residual_lm, fused, True, recompute).to(dtype)


def _before(values: Tensor) -> Tensor:
    """[B, T, ...] shifted to the right by one position; the first becomes zero."""
    return torch.cat((torch.zeros_like(values[:, :1]), values[:, :-1]), dim=1)


def _local_encoding(model: VoxCPM2Model, patches: Tensor, recompute: bool) -> Tensor:
    """[A, P, D] -> [A, h]: each patch on its own, read off a token in front of it (locenc/local_encoder.py)."""
    encoder = model.feat_encoder
    embedded = encoder.in_proj(patches)
    special = encoder.special_token[0].expand(len(patches), 1, -1)
    return _decode(encoder.encoder, torch.cat((special, embedded), dim=1), False, recompute)[:, 0]


def _flow_loss(
    model: VoxCPM2Model, target: Tensor, mu: Tensor, condition: Tensor, draws: Draws, recompute: bool
) -> Tensor:
    """[L]: squared error of the predicted flow from data to noise (locdit/unified_cfm.py: compute_loss).

    target, condition: [L, P, D]; mu: [L, 2 h].
    """
    cfm = model.feat_decoder
    if cfm.training_cfg_rate > 0:
        mu = mu * draws.keep_condition.view(-1, 1)
    t, noise = draws.t.to(target.dtype), draws.noise.to(target.dtype)
    part = t.view(-1, 1, 1)
    noisy = (1 - part) * target + part * noise
    predicted = _estimate(model, noisy, mu, t, condition, recompute)
    return F.mse_loss(predicted, noise - target, reduction="none").mean(dim=(1, 2))


def _estimate(model: VoxCPM2Model, noisy: Tensor, mu: Tensor, t: Tensor, condition: Tensor, recompute: bool) -> Tensor:
    """[L, P, D]: LocDiT's flow (locdit/local_dit_v2.py: forward), with the time step dt at zero as in training."""
    dit = model.feat_decoder.estimator
    x, given = dit.in_proj(noisy), dit.cond_proj(condition)
    time = dit.time_mlp(dit.time_embeddings(t).to(x.dtype))
    time = time + dit.delta_time_mlp(dit.time_embeddings(torch.zeros_like(t)).to(x.dtype))
    mu = mu.view(len(x), -1, x.shape[-1])
    hidden = _decode(dit.decoder, torch.cat((mu, time.unsqueeze(1), given, x), dim=1), False, recompute)
    flow: Tensor = dit.out_proj(hidden[:, -x.shape[1] :])
    return flow


def _decode(transformer: MiniCPMModel, embedded: Tensor, is_causal: bool, recompute: bool) -> Tensor:
    """minicpm4/model.py: forward, without the list of keys and values that would keep them alive."""
    turns = None
    if transformer.rope_emb is not None:
        turns = transformer.rope_emb(torch.arange(embedded.shape[1], device=embedded.device))

    hidden = embedded
    for layer in transformer.layers:
        if recompute:
            hidden = checkpoint(
                _layer_output, layer, hidden, turns, is_causal, use_reentrant=False, preserve_rng_state=False
            )
        else:
            hidden = _layer_output(layer, hidden, turns, is_causal)
    normed: Tensor = transformer.norm(hidden)
    return normed


def _layer_output(layer: nn.Module, hidden: Tensor, turns: tuple[Tensor, Tensor] | None, is_causal: bool) -> Tensor:
    output: Tensor = layer(hidden, turns, is_causal)[0]
    return output
