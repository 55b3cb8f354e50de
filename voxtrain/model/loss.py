"""The training loss: our own forward over upstream's modules (voxcpm2.py: VoxCPM2Model.forward), equal to upstream's.

What differs is work, never the result. LocEnc runs at audio positions alone and LocDiT at loss positions alone:
upstream runs both everywhere and multiplies by zero. Padding and what stands at a row's end, which no loss sees, are
left out (layers.py). Random draws come with the batch. Tests compare loss and every gradient with upstream's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from voxtrain.batch import Draws, MicroBatch
from voxtrain.model.layers import ALL, Rows
from voxtrain.model.operators import Operators, operators
from voxtrain.model.upstream import VoxCPM2Model


@dataclass(frozen=True, slots=True)
class PositionLosses:
    """One value for each loss position of a micro-batch, in row-major order."""

    diff: Tensor  # [L] float32, squared error of the flow, mean over the patch
    stop: Tensor  # [L] float32, cross-entropy of the stop prediction
    row: Tensor  # [L] int64, the row in the micro-batch


@dataclass(frozen=True, slots=True)
class GivenPositions:
    """What LocDiT is given at each loss position, and the stop loss there: none of it depends on a draw."""

    target: Tensor  # [L, P, D]
    mu: Tensor  # [L, 2 h], of both language models
    before: Tensor  # [L, P, D], the patch before
    stop: Tensor  # [L] float32
    row: Tensor  # [L] int64, the row in the micro-batch


@dataclass(frozen=True, slots=True)
class _Positions:
    """The n positions of a micro-batch that some loss position hears, one after the other; the others are left out.

    Of each row these are all before its last loss position: a loss is read off the state of the position before it.
    """

    rows: Rows
    live: Tensor  # [B, T] bool
    text: Tensor  # places among the n of text tokens
    audio: Tensor  # places among the n of audio patches
    before_loss: Tensor  # [L] places among the n, each of the position before a loss position


def position_losses(
    model: VoxCPM2Model, batch: MicroBatch, *, activation_checkpointing: bool, kernels: str = "plain"
) -> PositionLosses:
    """Both losses at every loss position of a micro-batch that lies on the model's device.

    Computes in upstream's dtype under autocast, in that of the weights without. `kernels`: see operators.py.
    """
    given = given_positions(model, batch, activation_checkpointing=activation_checkpointing, kernels=kernels)
    diff = flow_losses(model, given, batch.draws, activation_checkpointing=activation_checkpointing, kernels=kernels)
    return PositionLosses(diff, given.stop, given.row)


def given_positions(
    model: VoxCPM2Model, batch: MicroBatch, *, activation_checkpointing: bool, kernels: str = "plain"
) -> GivenPositions:
    """What LocEnc and both language models make of a micro-batch: the part that its draws do not touch."""
    device = batch.text_tokens.device
    dtype = compute_dtype(model, device)
    using, positions, feats = operators(kernels, device, dtype), _positions(batch), batch.audio_feats.to(dtype)
    states, residual = _states(model, batch, positions, feats, using, activation_checkpointing)
    mu = torch.cat((using.linear(model.lm_to_dit_proj, states), using.linear(model.res_to_dit_proj, residual)), dim=-1)
    target, before = feats[batch.loss_mask], _before(feats)[batch.loss_mask]
    logits = model.stop_head(model.stop_actn(using.linear(model.stop_proj, states)))
    # in fp32, as autocast has it: in bf16 a sure prediction's loss is 0 on the CPU, and so is half of its gradient
    stop = F.cross_entropy(logits.float(), batch.stop_labels[batch.loss_mask], reduction="none")
    return GivenPositions(target, mu, before, stop.float(), batch.loss_mask.nonzero()[:, 0])


def flow_losses(
    model: VoxCPM2Model,
    given: GivenPositions,
    draws: Draws,
    *,
    activation_checkpointing: bool,
    kernels: str = "plain",
) -> Tensor:
    """[L] float32: the flow loss at every loss position under some draws."""
    using = operators(kernels, given.target.device, given.target.dtype)
    return _flow_loss(model, given.target, given.mu, given.before, draws, using, activation_checkpointing).float()


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


def _positions(batch: MicroBatch) -> _Positions:
    length = batch.loss_mask.shape[1]
    place = torch.arange(length, device=batch.loss_mask.device)
    last = (batch.loss_mask * place).amax(dim=1, keepdim=True)  # [B, 1]
    live = (batch.text_mask | batch.audio_mask) & (place < last)
    row, position = live.nonzero(as_tuple=True)
    lengths = tuple(live.sum(dim=1).tolist())
    rows = Rows(lengths, position, row * max(lengths) + position)
    before = torch.zeros_like(batch.loss_mask)
    before[:, :-1] = batch.loss_mask[:, 1:]
    audio, before_loss = batch.audio_mask[live], before[live]
    found = _Positions(rows, live, *(mask.nonzero()[:, 0] for mask in (~audio, audio, before_loss)))
    if len(found.before_loss) != len(batch.draws.t):
        raise ValueError("a loss position opens its row, or there are not as many draws as loss positions")
    return found


def _states(
    model: VoxCPM2Model, batch: MicroBatch, positions: _Positions, feats: Tensor, using: Operators, recompute: bool
) -> tuple[Tensor, Tensor]:
    """States of both language models at the position before each loss position: each [L, H]."""
    dtype, lm, live = feats.dtype, model.config.lm_config, positions.live
    patches = feats[live][positions.audio]
    heard = using.linear(model.enc_to_lm_proj, _local_encoding(model, patches, using, recompute))  # [A, H]
    words = using.embedding(model.base_lm.embed_tokens, batch.text_tokens[live][positions.text])
    words = words * (lm.scale_emb if lm.use_mup else 1.0)
    both = torch.promote_types(words.dtype, heard.dtype)
    audio = heard.new_zeros(len(positions.rows.position), heard.shape[-1]).index_copy(0, positions.audio, heard)
    embedded = audio.to(both).index_copy(0, positions.text, words.to(both))  # [n, H]
    states = using.row_states(model.base_lm, embedded, positions.rows, ALL, recompute=recompute).to(dtype)
    quantised = model.fsq_layer(states.index_select(0, positions.audio))
    states = states.index_copy(0, positions.audio, quantised.to(dtype))
    fused = using.linear(model.fusion_concat_proj, torch.cat((states, audio), dim=-1))
    read = positions.before_loss
    residual = using.row_states(model.residual_lm, fused, positions.rows, read, recompute=recompute)
    return states.index_select(0, read), residual.to(dtype)


def _before(values: Tensor) -> Tensor:
    """[B, T, ...] shifted to the right by one position; the first becomes zero."""
    return torch.cat((torch.zeros_like(values[:, :1]), values[:, :-1]), dim=1)


def _local_encoding(model: VoxCPM2Model, patches: Tensor, using: Operators, recompute: bool) -> Tensor:
    """[A, P, D] -> [A, h]: each patch on its own, read off a token in front of it (locenc/local_encoder.py)."""
    encoder = model.feat_encoder
    embedded = using.linear(encoder.in_proj, patches)
    special = encoder.special_token[0].expand(len(patches), 1, -1)
    tokens = torch.cat((special, embedded), dim=1)
    return using.patch_states(encoder.encoder, tokens, slice(0, 1), recompute=recompute)[:, 0]


def _flow_loss(
    model: VoxCPM2Model,
    target: Tensor,
    mu: Tensor,
    condition: Tensor,
    draws: Draws,
    using: Operators,
    recompute: bool,
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
    predicted = _estimate(model, noisy, mu, t, condition, using, recompute)
    error = F.mse_loss(predicted.float(), (noise - target).float(), reduction="none")
    return error.mean(dim=(1, 2))


def _estimate(
    model: VoxCPM2Model, noisy: Tensor, mu: Tensor, t: Tensor, condition: Tensor, using: Operators, recompute: bool
) -> Tensor:
    """[L, P, D]: LocDiT's flow (locdit/local_dit_v2.py: forward), with the time step dt at zero as in training."""
    dit = model.feat_decoder.estimator
    x, given = using.linear(dit.in_proj, noisy), using.linear(dit.cond_proj, condition)
    time = dit.time_mlp(dit.time_embeddings(t).to(x.dtype))
    time = time + dit.delta_time_mlp(dit.time_embeddings(t.new_zeros(1)).to(x.dtype))  # the same at all positions
    mu = mu.view(len(x), -1, x.shape[-1])
    tokens = torch.cat((mu, time.unsqueeze(1), given, x), dim=1)
    hidden = using.patch_states(dit.decoder, tokens, slice(-x.shape[1], None), recompute=recompute)
    return using.linear(dit.out_proj, hidden)
