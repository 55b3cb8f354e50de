"""Judging real checkpoints of the tiny model: exact, repeatable, and not stopped by one that is broken."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_run import CPU, make_run, settings_of, sources_of

from voxtrain.checkpoint.weights import first_model, put_weights
from voxtrain.data.draws import validation_draws
from voxtrain.data.latents import LatentCache
from voxtrain.data.packing import collate, packed_rows
from voxtrain.durable import read_json
from voxtrain.fault import DONE, FAILED, InputError
from voxtrain.manifest.prepare import read_split
from voxtrain.model import upstream
from voxtrain.model.loss import position_losses
from voxtrain.model.tuning import LoraTuning
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.validation.__main__ import main, parse
from voxtrain.validation.judge import judge
from voxtrain.validation.losses import losses_on_fixed_draws
from voxtrain.validation.table import read_rows

STEPS = (0, 10, 20)
DRAWS = "validation.draws=2"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, cache: Path, clips: list[tuple[Path, str, str]]) -> RunFolder:
    """A full fine-tuning run that nobody has judged."""
    return make_run(tmp_path_factory.mktemp("full") / "run", cache, clips[:5], STEPS, "demo", DRAWS)


@pytest.fixture(scope="module")
def pristine_lora(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, clips: list[tuple[Path, str, str]]
) -> RunFolder:
    """A LoRA run that nobody has judged."""
    return make_run(tmp_path_factory.mktemp("lora") / "run", cache, clips[:5], STEPS, "lora_demo", DRAWS)


@pytest.fixture
def run(pristine: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the full run to do things to."""
    return RunFolder(shutil.copytree(pristine.root, tmp_path / "run", symlinks=True))


def judged(run: RunFolder, **changes: object) -> dict[str, list[object]]:
    """All records after judging with some settings changed."""
    settings = settings_of(run).validation.model_copy(update=changes)
    found = judge(run, settings, sources_of(run))
    assert found.not_judged == {}
    return read_rows(run).to_pydict()


def test_records_are_checkpoints_by_rows_by_draws(run: RunFolder) -> None:
    records = judged(run)
    keys = set(zip(records["step"], records["id"], records["draw"], strict=True))
    assert keys == {(step, f"row{n}", draw) for step in STEPS for n in range(1, 6) for draw in range(2)}
    assert len(records["step"]) == len(keys)
    assert set(zip(records["id"], records["group"], strict=True)) == {
        (f"row{n}", f"parent_{(n - 1) % 4}") for n in range(1, 6)
    }
    assert len({tuple(records["loss/diff"][i :: len(STEPS)]) for i in range(len(STEPS))}) == len(STEPS)


@pytest.mark.slow
def test_judging_twice_gives_the_same_bits(run: RunFolder, pristine: RunFolder) -> None:
    first = judged(run)
    run.evaluated_rows.unlink()
    assert judged(run) == first
    assert not pristine.evaluation.exists()


@pytest.mark.slow
def test_a_loss_is_that_of_the_row_alone_with_its_own_draws(run: RunFolder) -> None:
    """Against position_losses on one row at a time, with a freshly loaded model; padding costs some rounding."""
    records = judged(run)
    folder, sources = run.checkpoint(20), sources_of(run)
    model = upstream.load_model(folder, None, CPU, torch.float32).eval()
    rows = read_split(DataFolder(run.data), "validation")
    cache = LatentCache(sources.latent_folder, upstream.vae_key(folder), upstream.load_encoder(folder), None)
    packed = packed_rows(rows, upstream.load_tokenizer(folder), cache.latents)
    looked = 0
    for at, (step, name, draw) in enumerate(zip(records["step"], records["id"], records["draw"], strict=True)):
        if step != 20:
            continue
        [row] = [one for one in packed if one.id == name]
        drawn = validation_draws(name, draw, 2, row.loss_positions, *row.audio_feats.shape[1:])
        with torch.no_grad():
            alone = position_losses(model, collate([row], [drawn], [0]), activation_checkpointing=False)
        assert records["positions"][at] == row.loss_positions
        assert records["loss/diff"][at] == pytest.approx(alone.diff.double().mean().item(), rel=2e-6)
        assert records["loss/stop"][at] == pytest.approx(alone.stop.double().mean().item(), rel=2e-6)
        bins = [(drawn.t * 5).int() == k for k in range(5)]
        for k, inside in enumerate(bins):
            found = records[f"loss/diff/t{k}"][at]
            assert (found is None) == (not inside.any())
            assert found is None or found == pytest.approx(alone.diff[inside].double().mean().item(), rel=2e-6)
        looked += 1
    assert looked == 10


@pytest.mark.slow
def test_how_rows_are_put_together_hardly_matters(run: RunFolder) -> None:
    together = judged(run)
    run.evaluated_rows.unlink()
    alone = judged(run, max_positions=1)  # every row is longer than that, so each goes alone
    for name in ("loss/diff", "loss/stop"):
        np.testing.assert_allclose(alone[name], together[name], rtol=2e-6)  # fp32 sums in another order


@pytest.mark.slow
def test_a_swapped_model_gives_the_bits_of_a_freshly_loaded_one(pristine: RunFolder, pristine_lora: RunFolder) -> None:
    for run in (pristine, pristine_lora):
        sources = sources_of(run)
        swapped = first_model(run.checkpoint(0), sources.base, sources.lora, CPU, torch.float32)
        for step in (10, 20, 10):
            put_weights(swapped, run.checkpoint(step), sources.lora)
        if sources.lora is None:
            fresh = upstream.load_model(run.checkpoint(10), None, CPU, torch.float32)
        else:
            fresh = upstream.load_model(sources.base(), sources.lora, CPU, torch.float32, seed=5)
            upstream.load_adapter(fresh, run.checkpoint(10))
        wanted, found = fresh.state_dict(), swapped.state_dict()
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_a_lora_run_is_judged_and_step_0_is_the_base(pristine_lora: RunFolder, pristine: RunFolder) -> None:
    sources = sources_of(pristine_lora)
    assert isinstance(sources.lora, LoraTuning)
    records = judged(pristine_lora)
    base = upstream.load_model(sources.base(), None, CPU, torch.float32).eval()
    rows = read_split(DataFolder(pristine_lora.data), "validation")
    folder = sources.base()
    cache = LatentCache(sources.latent_folder, upstream.vae_key(folder), upstream.load_encoder(folder), None)
    packed = packed_rows(rows, upstream.load_tokenizer(folder), cache.latents)
    alone = losses_on_fixed_draws(base, packed, 2, 2400, CPU, "base")
    of_base = [diff for step, diff in zip(records["step"], records["loss/diff"], strict=True) if step == 0]
    assert of_base == [loss.diff for loss in alone]
    assert len(set(records["loss/diff"])) > len(of_base)


@pytest.mark.slow
def test_what_is_judged_is_not_judged_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = judged(run)
    monkeypatch.setattr("voxtrain.validation.judge._judge_steps", None)  # calling it would fail
    assert judged(run) == first


@pytest.mark.slow
def test_a_judge_that_was_killed_goes_on_where_it_was(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judged(run)
    run.evaluated_rows.unlink()
    calls: list[str] = []

    def dying(*arguments: object) -> object:
        calls.append(str(arguments[-1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return losses_on_fixed_draws(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("voxtrain.validation.losses.losses_on_fixed_draws", dying)
    with pytest.raises(KeyboardInterrupt):
        judged(run)
    assert judged(run) == whole
    assert calls == ["judging step 0", "judging step 10", "judging step 10", "judging step 20"]


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 10])
def test_a_checkpoint_that_is_broken_is_told_and_the_others_are_judged(
    step: int, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run.checkpoint(step) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main([str(run.root)]) == FAILED
    choice = read_json(run.selection)
    assert [entry["step"] for entry in choice["not_judged"]] == [step]
    assert "checksum" in choice["not_judged"][0]["reason"]
    assert choice["selected_step"] in {10, 20} - {step}
    assert f"step {step} is not judged" in capsys.readouterr().err
    with run.evaluated_checkpoints.open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [s for s in STEPS if s != step]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_every_kind_of_damage_is_told(damage: str, run: RunFolder, pristine_lora: RunFolder) -> None:
    weights = run.checkpoint(10) / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "gone":
        shutil.rmtree(run.checkpoint(10))
        run.checkpoint(10).mkdir()
    else:
        shutil.rmtree(run.checkpoint(10))
        shutil.copytree(pristine_lora.checkpoint(10), run.checkpoint(10))
    found = judge(run, settings_of(run).validation, sources_of(run))
    assert set(found.not_judged) == {10}
    assert sorted(set(read_rows(run)["step"].to_pylist())) == [0, 20]


@pytest.mark.slow
def test_a_checkpoint_that_is_mended_is_judged_then(run: RunFolder, pristine: RunFolder) -> None:
    weights = run.checkpoint(10) / "model.safetensors"
    weights.write_bytes(b"")
    assert main([str(run.root)]) == FAILED
    shutil.copy(pristine.checkpoint(10) / "model.safetensors", weights)
    assert main([str(run.root)]) == DONE
    assert read_json(run.selection)["not_judged"] == []


@pytest.mark.slow
def test_the_door_selects_again_without_judging(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run.root)]) == DONE
    told = capsys.readouterr().out
    chosen = read_json(run.selection)["selected_step"]
    assert f"Selected: step {chosen}" in told
    assert "base model" in told
    shutil.rmtree(run.checkpoints)  # nothing there to judge
    run.selection.unlink()
    assert main([str(run.root), "--select-only", "train.loss_weights.stop=0"]) == DONE
    choice = read_json(run.selection)
    assert choice["loss_weights"] == {"diff": 1.0, "stop": 0.0}
    assert "rows/s" not in capsys.readouterr().err


@pytest.mark.slow
def test_weights_in_bf16_are_close(run: RunFolder, pristine_lora: RunFolder, tmp_path: Path) -> None:
    lora = RunFolder(shutil.copytree(pristine_lora.root, tmp_path / "lora", symlinks=True))
    for folder in (run, lora):
        exact = judged(folder)
        rough = judged(folder, dtype="bf16")
        difference = np.abs(np.subtract(exact["loss/diff"], rough["loss/diff"]))
        assert 0 < difference.max() < 0.1 * np.mean(exact["loss/diff"])  # 8 bits of significand over 2 x 2 layers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no run folder"),
        (["a", "b"], "2 run folders"),
        (["a", "--selectonly"], "no such flag"),
    ],
)
def test_arguments_that_cannot_be_meant_are_told(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(arguments)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        main([str(tmp_path)])


def test_nothing_to_select_from_is_told(run: RunFolder) -> None:
    with pytest.raises(InputError, match="nothing was judged"):
        main([str(run.root), "--select-only"])
