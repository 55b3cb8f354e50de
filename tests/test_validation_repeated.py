"""Judged again, a loss is the same: with training in between, and, but for rounding, with other threads and batches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from judged_run import make_run, settings_of, sources_of
from model_batches import step_batch
from model_steps import fit, module, rows_of_step

from voxtrain.model.tuning import FullTuning
from voxtrain.run_folder import RunFolder
from voxtrain.validation.judge import judge
from voxtrain.validation.table import read_rows

pytestmark = pytest.mark.slow
STEPS = (0, 10)
ROUNDING = 2e-6
"""Relative: sums in fp32 in another order, over some hundred products."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, cache: Path, clips: list[tuple[Path, str, str]]) -> RunFolder:
    """A run that nobody has judged."""
    return make_run(tmp_path_factory.mktemp("full") / "run", cache, clips[:5], STEPS, "demo", "validation.draws=2")


@pytest.fixture
def run(pristine: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(pristine.root, tmp_path / "run", symlinks=True))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    yield
    torch.set_num_threads(before)


def judged(run: RunFolder, **changes: object) -> dict[str, list[float]]:
    """All records, made anew."""
    run.evaluated_rows.unlink(missing_ok=True)
    found = judge(run, settings_of(run).validation.model_copy(update=changes), sources_of(run))
    assert found.not_judged == {}
    return read_rows(run).to_pydict()


@pytest.mark.parametrize("kernels", ["plain", "cpu"])
def test_training_in_between_changes_no_bit(run: RunFolder, tiny_folder: Path, kernels: str) -> None:
    before = judged(run)
    torch.manual_seed(1234)
    trained = module(tiny_folder, FullTuning(), kernels=kernels)
    fit(trained, [step_batch(step, [rows_of_step(step, 4)]) for step in (1, 2, 3)])
    assert trained.steps_done == 3
    assert judged(run) == before
    assert judged(run) == before


def test_judging_changes_nothing_that_training_draws_from(run: RunFolder, tiny_folder: Path) -> None:
    def learnt(*, judges: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        trained = module(tiny_folder, FullTuning())
        fit(trained, [step_batch(1, [rows_of_step(1, 4)])])
        if judges:
            judged(run)
        assert torch.is_grad_enabled()
        fit(trained, [step_batch(2, [rows_of_step(2, 4)])])
        return {**trained.model.state_dict(), "random": torch.get_rng_state()}

    alone, beside = learnt(judges=False), learnt(judges=True)
    assert [name for name in alone if not torch.equal(alone[name], beside[name])] == []


@pytest.mark.usefixtures("two_threads")
def test_with_other_threads_only_rounding_differs(run: RunFolder) -> None:
    here = judged(run)
    torch.set_num_threads(3 - torch.get_num_threads())
    there = judged(run)
    assert here["id"] == there["id"]
    for name in ("loss/diff", "loss/stop"):
        np.testing.assert_allclose(there[name], here[name], rtol=ROUNDING)


def test_in_other_batches_only_rounding_differs(run: RunFolder) -> None:
    usual = judged(run)
    for most in (1, 40, 10_000):  # each row alone, some together, all together
        other = judged(run, max_positions=most)
        assert other["id"] == usual["id"]
        assert other["positions"] == usual["positions"]
        for name in ("loss/diff", "loss/stop"):
            np.testing.assert_allclose(other[name], usual[name], rtol=ROUNDING)
