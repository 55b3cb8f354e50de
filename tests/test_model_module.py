"""One optimizer step: equal to upstream's loop on the same draws, and for any cut into micro-batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_batches import step_batch, upstream_losses
from model_steps import ADAMW, CPU, LORA, SCHEDULE, TUNINGS, fit, module, rows_of_step

from voxtrain.model.loss import position_losses
from voxtrain.model.tuning import FullTuning, LoraTuning
from voxtrain.model.upstream import load_model


@pytest.mark.parametrize(
    ("tuning", "normalisation", "rows"),
    [
        pytest.param(FullTuning(), "per_frame", 2, id="full-two_rows"),
        pytest.param(LORA, "per_row", 1, id="lora-one_row"),
        pytest.param(FullTuning(), "per_frame", 3, id="full-three_rows", marks=pytest.mark.slow),
        pytest.param(FullTuning(), "per_row", 1, id="full-one_row", marks=pytest.mark.slow),
        pytest.param(LORA, "per_frame", 3, id="lora-three_rows", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_twenty_steps_equal_upstreams_forward_and_loop(
    tiny_folder: Path, tuning: FullTuning | LoraTuning, normalisation: str, rows: int
) -> None:
    steps = [step_batch(step, [rows_of_step(step, rows)]) for step in range(1, 21)]
    collect = fit(module(tiny_folder, tuning, loss_normalisation=normalisation), steps)

    lora = tuning if isinstance(tuning, LoraTuning) else None
    model = load_model(tiny_folder, lora, CPU, torch.float32, seed=3)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=ADAMW.lr, weight_decay=ADAMW.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: SCHEDULE.factor(step, 20))
    assert len(collect.reports) == 20
    for step, report in zip(steps, collect.reports, strict=True):
        losses = upstream_losses(model, step.micro_batches[0])
        optimizer.zero_grad()
        (losses["loss/diff"] + 0.5 * losses["loss/stop"]).backward()
        norm = torch.nn.utils.clip_grad_norm_(learning, 1.0)
        # float32 sums in another order, carried through 20 updates: measured at most 3e-7. On another machine a value
        # may lie so near a step of the quantiser (40,000 go through it here) that it falls to the other side.
        assert report.loss_diff == pytest.approx(losses["loss/diff"].item(), rel=1e-4)
        assert report.loss_stop == pytest.approx(losses["loss/stop"].item(), rel=1e-4)
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert report.lr == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    assert collect.reports[-1].loss_diff != pytest.approx(collect.reports[0].loss_diff, rel=1e-2)


@pytest.mark.parametrize(("tuning", "normalisation"), [(FullTuning(), "per_row"), (LORA, "per_frame")])
@pytest.mark.slow
def test_gradient_is_the_same_for_any_cut(
    tiny_folder: Path, tuning: FullTuning | LoraTuning, normalisation: str
) -> None:
    rows = rows_of_step(1, 4)
    one_by_one = [[row] for row in rows]
    ways = [([rows], False), ([[rows[3], rows[0]], [rows[1], rows[2]]], True), (one_by_one, False), (one_by_one, True)]
    found = [
        fit(module(tiny_folder, tuning, loss_normalisation=normalisation, recompute=recompute), [step_batch(1, cut)])
        for cut, recompute in ways
    ]
    first = found[0]
    for other in found[1:]:
        assert other.gradients[0].keys() == first.gradients[0].keys()
        for name, gradient in first.gradients[0].items():
            # float32 sums in another order: see test_model_loss.py
            atol = 3e-5 * gradient.abs().max().item()
            torch.testing.assert_close(other.gradients[0][name], gradient, rtol=0, atol=atol, msg=name)
        assert other.reports[0].loss_total == pytest.approx(first.reports[0].loss_total, rel=1e-6)
        assert other.reports[0].grad_norm == pytest.approx(first.reports[0].grad_norm, rel=1e-5)
    kept, recomputed = found[2].gradients[0], found[3].gradients[0]
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)  # here even the order is the same


def test_normalisations_differ_and_the_report_follows(tiny_folder: Path) -> None:
    rows = rows_of_step(1, 4)
    per_row = fit(module(tiny_folder, FullTuning()), [step_batch(1, [rows])]).reports[0]
    per_frame = fit(module(tiny_folder, FullTuning(), loss_normalisation="per_frame"), [step_batch(1, [rows])])
    losses, framed = per_row.row_losses, per_frame.reports[0].row_losses
    assert [replace(row, part=0.0) for row in losses] == [replace(row, part=0.0) for row in framed]
    assert [row.part for row in losses] == [0.25] * 4
    assert [row.part for row in framed] == [positions / 24 for positions in (3, 5, 7, 9)]
    assert [row.total for row in losses] == [row.diff + 0.5 * row.stop for row in losses]
    assert [row.id for row in losses] == [f"row{n}" for n in range(4)]
    assert [row.positions for row in losses] == [3, 5, 7, 9]
    assert per_row.loss_diff == pytest.approx(sum(row.diff for row in losses) / 4)
    weighted = sum(row.diff * row.positions for row in losses) / 24
    assert per_frame.reports[0].loss_diff == pytest.approx(weighted)
    assert per_row.loss_diff != pytest.approx(weighted, rel=1e-4)
    assert per_row.loss_total == per_row.loss_diff + 0.5 * per_row.loss_stop


def test_weight_of_the_positive_class_acts_where_a_clip_ends(tiny_folder: Path) -> None:
    rows = rows_of_step(1, 3)
    step = step_batch(1, [rows[:2], rows[2:]])
    plain = fit(module(tiny_folder, FullTuning()), [step])
    weighted = fit(module(tiny_folder, FullTuning(), weight_stop_positive=5.0), [step])

    model = load_model(tiny_folder, None, CPU, torch.float32, seed=3)
    wanted = torch.zeros(())
    for row in rows:  # by hand: each row's mean over its positions, the last of which counts five times
        losses = position_losses(model, step_batch(1, [[row]]).micro_batches[0], activation_checkpointing=False)
        stop = losses.stop * torch.tensor([1.0] * (len(losses.stop) - 1) + [5.0])
        wanted = wanted + (losses.diff.mean() + 0.5 * stop.mean()) / 3
    wanted.backward()
    assert weighted.reports[0].loss_total == pytest.approx(wanted.item(), rel=1e-6)
    assert weighted.reports[0].loss_diff == plain.reports[0].loss_diff
    assert weighted.reports[0].loss_stop > 1.2 * plain.reports[0].loss_stop
    gradient = weighted.gradients[0]["stop_head.weight"]
    # float32 sums in another order
    torch.testing.assert_close(gradient, model.stop_head.weight.grad, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(gradient, plain.gradients[0]["stop_head.weight"], rtol=0.05)


def test_only_adapters_move_under_lora(tiny_folder: Path) -> None:
    trained = module(tiny_folder, LORA)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    fit(trained, [step_batch(step, [rows_of_step(step, 2)]) for step in range(1, 5)])
    after = trained.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(trained.learnt_tensors())
    assert moved == {name for name in before if "lora_" in name}
    assert moved


def test_everything_moves_under_full_tuning(tiny_folder: Path) -> None:
    trained = module(tiny_folder, FullTuning())
    before = {name: tensor.clone() for name, tensor in trained.learnt_tensors().items()}
    fit(trained, [step_batch(step, [rows_of_step(step, 2)]) for step in range(1, 5)])
    after = trained.learnt_tensors()
    assert after.keys() == before.keys()
    assert sum(tensor.numel() for tensor in after.values()) == 859_440
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_gradients_are_clipped_after_the_norm_is_taken(tiny_folder: Path) -> None:
    steps = [step_batch(1, [rows_of_step(1, 2)])]
    free = fit(module(tiny_folder, FullTuning(), max_grad_norm=0.0), steps)
    norm = free.reports[0].grad_norm
    small = norm / 10
    trained = module(tiny_folder, FullTuning(), max_grad_norm=small)
    assert fit(trained, steps).reports[0].grad_norm == norm
    moments = [held["exp_avg"] for held in trained.optimizers().state.values()]  # a tenth of what the update took
    of_clipped = 10 * torch.nn.utils.get_total_norm(moments).item()
    assert of_clipped == pytest.approx(small, rel=1e-4)  # torch adds 1e-6 to the norm that it divides by
    assert torch.nn.utils.get_total_norm(free.gradients[0].values()).item() == pytest.approx(norm)


def test_the_rest_of_the_report(tiny_folder: Path) -> None:
    rows = rows_of_step(1, 4)
    step = step_batch(1, [rows[:2], rows[2:]])
    report = fit(module(tiny_folder, FullTuning()), [step]).reports[0]
    assert (report.step, report.rows, report.rows_seen, report.micro_batches) == (1, 4, 4, 2)
    assert report.padding_share == pytest.approx(1 - step.positions / step.padded_positions)
    assert report.padding_share > 0
    assert report.positions == step.positions
    assert report.audio_seconds == step.audio_seconds
    assert 0 < report.seconds < 60


@pytest.mark.slow
@TUNINGS
def test_tiny_model_learns(tiny_folder: Path, tuning: FullTuning | LoraTuning) -> None:
    rows = rows_of_step(1, 4)
    steps = [step_batch(step, [rows]) for step in range(1, 21)]  # the same rows and draws again and again
    reports = fit(module(tiny_folder, tuning), steps).reports
    share = 0.9 if isinstance(tuning, FullTuning) else 0.98
    assert reports[-1].loss_diff < share * reports[0].loss_diff
    assert reports[-1].loss_stop < share * reports[0].loss_stop


@pytest.mark.slow
def test_8bit_state_learns_alike(tiny_folder: Path) -> None:
    steps = [step_batch(step, [rows_of_step(step, 2)]) for step in range(1, 6)]
    plain = fit(module(tiny_folder, FullTuning()), steps).reports
    eight = fit(module(tiny_folder, FullTuning(), state="paged_8bit"), steps).reports
    assert eight[0].loss_total == plain[0].loss_total
    # blockwise 8-bit state rounds each moment to about two digits
    assert eight[-1].loss_total == pytest.approx(plain[-1].loss_total, rel=0.02)
    assert eight[-1].loss_total != plain[-1].loss_total


@pytest.mark.slow
def test_autocast_stays_near_float32(tiny_folder: Path) -> None:
    steps = [step_batch(step, [rows_of_step(step, 2)]) for step in range(1, 4)]
    plain = fit(module(tiny_folder, FullTuning()), steps).reports
    half = fit(module(tiny_folder, FullTuning(), autocast=True, recompute=True), steps).reports
    assert half[-1].loss_total == pytest.approx(plain[-1].loss_total, rel=0.02)  # bf16: 8 bits of significand
    assert half[-1].loss_total != plain[-1].loss_total


@pytest.mark.slow
@TUNINGS
def test_operators_for_the_cpu_train_alike(tiny_folder: Path, tuning: FullTuning | LoraTuning) -> None:
    """Gradients by row and the operators' own backward passes: norms, losses and weights of three clipped steps."""
    steps = [step_batch(step, [rows_of_step(step, 2), rows_of_step(step + 9, 2)]) for step in (1, 2, 3)]
    plain, fast = (module(tiny_folder, tuning, max_grad_norm=0.1, kernels=kernels) for kernels in ("plain", "cpu"))
    told = [fit(trained, steps).reports for trained in (plain, fast)]
    for one, two in zip(*told, strict=True):
        assert two.loss_total == pytest.approx(one.loss_total, rel=1e-5)
        assert two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert one.grad_norm > 0.1
    weights = plain.learnt_tensors()
    for name, tensor in fast.learnt_tensors().items():
        # Adam's first updates are lr (1e-3, warmed up) times a sign, which a gradient of rounding alone may turn
        assert (tensor - weights[name]).norm() <= 0.05 * 3e-3 * tensor.numel() ** 0.5, name
