"""Our forward is upstream's forward: loss and every gradient, on the same draws, with either set of operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_batches import MicroBatch, micro_batch, one_row, upstream_losses

from voxtrain.model.loss import PositionLosses, position_losses, row_means
from voxtrain.model.tuning import LoraTuning
from voxtrain.model.upstream import load_model

CPU = torch.device("cpu")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA = LoraTuning(
    rank=4,
    alpha=8,
    dropout=0.0,
    lm=True,
    dit=True,
    projections=True,
    locenc=False,
    stop_head=False,
    lm_targets=ATTENTION,
    dit_targets=ATTENTION,
    projection_targets=("enc_to_lm_proj", "fusion_concat_proj"),
    locenc_targets=(),
)
ROWS = {
    "one row": [one_row(0, 9, 5)],
    "one row with reference": [one_row(1, 9, 5, 3)],
    "one audio position": [one_row(2, 4, 1)],
    "one audio position each": [one_row(6, 4, 1), one_row(7, 7, 1)],
    "several, padded, some with reference": [one_row(3, 9, 5, 3), one_row(4, 20, 9), one_row(5, 4, 12, 6)],
}
KERNELS = ("plain", "cpu")
# Two float32 computations of the same sums in another order. Losses of order 1 to 2, each a mean of a thousand squares:
LOSS_RTOL = 1e-6
# Gradients are sums of both signs; measured at most 7e-6 of the tensor's largest element.
GRADIENT_SHARE = 3e-5


def trained_adapters(model: Any) -> None:
    """Adapters begin at zero, where half of their gradients are zero too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.to_dense().clone() for name, p in model.named_parameters() if p.grad is not None}


def ours(model: Any, batch: MicroBatch, *, recompute: bool = False, kernels: str = "plain") -> PositionLosses:
    return position_losses(model, batch, activation_checkpointing=recompute, kernels=kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_loss_and_every_gradient_equal_upstreams(
    tiny_folder: Path, lora: LoraTuning | None, rows: list, kernels: str
) -> None:
    model = load_model(tiny_folder, lora, CPU, torch.float32)
    trained_adapters(model)
    batch = micro_batch(rows)
    expected = upstream_losses(model, batch)
    expected_gradients = gradients(model, expected["loss/diff"] + expected["loss/stop"])

    found = ours(model, batch, kernels=kernels)
    assert found.diff.mean().item() == pytest.approx(expected["loss/diff"].item(), rel=LOSS_RTOL)
    assert found.stop.mean().item() == pytest.approx(expected["loss/stop"].item(), rel=LOSS_RTOL)
    found_gradients = gradients(model, found.diff.mean() + found.stop.mean())
    assert found_gradients.keys() == expected_gradients.keys()
    assert len(found_gradients) == (109 if lora is None else 52)
    largest_of = {name: gradient.abs().max().item() for name, gradient in expected_gradients.items()}
    idle = [name for name, largest in largest_of.items() if largest == 0]
    alone = all(row.audio.sum() == 1 for row in rows)  # nothing follows the only patch, and nothing went before it
    assert all(alone and ("enc" in name or "fsq" in name or "cond_proj" in name) for name in idle), idle
    for name, gradient in expected_gradients.items():
        largest = largest_of[name]
        torch.testing.assert_close(found_gradients[name], gradient, rtol=0, atol=GRADIENT_SHARE * largest, msg=name)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_recomputed_layers_change_no_bit(tiny_folder: Path, lora: LoraTuning | None, kernels: str) -> None:
    model = load_model(tiny_folder, lora, CPU, torch.float32)
    batch = micro_batch(ROWS["several, padded, some with reference"])
    kept, again = ours(model, batch, kernels=kernels), ours(model, batch, recompute=True, kernels=kernels)
    assert torch.equal(kept.diff, again.diff)
    assert torch.equal(kept.stop, again.stop)
    one, two = gradients(model, kept.diff.sum()), gradients(model, again.diff.sum())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_layers_of_all_four_transformers_are_recomputed(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, None, CPU, torch.float32)
    lists = (model.base_lm, model.residual_lm, model.feat_encoder.encoder, model.feat_decoder.estimator.decoder)
    layers = [layer for transformer in lists for layer in transformer.layers]
    assert len(layers) == 8
    runs = dict.fromkeys(range(8), 0)
    for number, layer in enumerate(layers):
        layer.mlp.down_proj.register_forward_pre_hook(lambda *_, number=number: runs.update({number: runs[number] + 1}))
    losses = ours(model, micro_batch(ROWS["one row"]), recompute=True)
    (losses.diff.sum() + losses.stop.sum()).backward()
    assert set(runs.values()) == {2}


def test_transformers_see_only_positions_that_a_loss_hears(tiny_folder: Path) -> None:
    """No padding, of text nothing in LocEnc and LocDiT; of a row's end neither the last patch nor the closing token."""
    model = load_model(tiny_folder, None, CPU, torch.float32)
    seen: dict[str, list[tuple[int, ...]]] = {}

    def watch(name: str, transformer: Any) -> None:
        for layer in transformer.layers:
            for part in (layer.self_attn.k_proj, layer.mlp.down_proj):
                part.register_forward_hook(lambda _, args, out: seen.setdefault(name, []).append(out.shape[:2]))

    watch("base", model.base_lm)
    watch("residual", model.residual_lm)
    watch("enc", model.feat_encoder.encoder)
    watch("dit", model.feat_decoder.estimator.decoder)
    rows = ROWS["several, padded, some with reference"]
    ours(model, micro_batch(rows))
    positions = sum(len(row.tokens) - 2 for row in rows)
    audio, loss = (5 + 3 + 9 + 12 + 6) - 3, 5 + 9 + 12
    # of each layer what is listened to, and what goes on: in the last layer only what is read
    assert seen["base"] == [(1, positions)] * 4
    assert seen["residual"] == [(1, positions)] * 3 + [(1, loss)]
    assert seen["enc"] == [(audio, 5)] * 3 + [(audio, 1)]
    assert seen["dit"] == [(loss, 11)] * 3 + [(loss, 4)]


@pytest.mark.parametrize("kernels", KERNELS)
def test_losses_stand_at_their_rows_whatever_the_padding(tiny_folder: Path, kernels: str) -> None:
    model = load_model(tiny_folder, None, CPU, torch.float32)
    rows = ROWS["several, padded, some with reference"]
    together = ours(model, micro_batch(rows), kernels=kernels)
    assert together.row.tolist() == [0] * 5 + [1] * 9 + [2] * 12
    alone = [ours(model, micro_batch([row]), kernels=kernels) for row in rows]
    # other matrix shapes add up in another order: float32 rounding of values of order 1
    torch.testing.assert_close(together.diff, torch.cat([one.diff for one in alone]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.stop, torch.cat([one.stop for one in alone]), rtol=1e-5, atol=1e-6)


def test_untrained_adapters_change_no_bit(tiny_folder: Path) -> None:
    batch = micro_batch(ROWS["several, padded, some with reference"])
    plain = ours(load_model(tiny_folder, None, CPU, torch.float32), batch)
    adapted = ours(load_model(tiny_folder, LORA, CPU, torch.float32), batch)
    assert torch.equal(plain.diff, adapted.diff)
    assert torch.equal(plain.stop, adapted.stop)


def test_dropped_conditions_reach_the_loss(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, None, CPU, torch.float32)
    batch = micro_batch(ROWS["one row"])
    batch.draws.keep_condition.fill_(True)
    kept = ours(model, batch).diff
    batch.draws.keep_condition.fill_(False)
    assert not torch.isclose(ours(model, batch).diff, kept).any()


def test_autocast_follows_upstreams_dtypes(tiny_folder: Path) -> None:
    model = load_model(tiny_folder, None, CPU, torch.float32)
    model.config.dtype = "bfloat16"  # as the released model's: its forward casts inputs to it
    batch = micro_batch(ROWS["several, padded, some with reference"])
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = upstream_losses(model, batch)
        found = ours(model, batch)
    assert found.diff.dtype == torch.float32
    # bf16 has 8 bits: single roundings, and now and then a step of the quantiser, fall otherwise in other shapes
    assert found.diff.mean().item() == pytest.approx(expected["loss/diff"].item(), rel=2e-3)
    assert found.stop.mean().item() == pytest.approx(expected["loss/stop"].item(), rel=2e-3)
    plain = ours(model, batch)  # without autocast, in the weights' dtype, whatever config.json says
    assert plain.diff.mean().item() == pytest.approx(expected["loss/diff"].item(), rel=2e-2)


def test_row_means() -> None:
    values, row = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 1])
    assert row_means(values, row, 2).tolist() == [2.0, 10.0]
