"""Faults that a user met once, each with the shortest way to meet it again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxtrain.__main__ import main
from voxtrain.fault import InputError
from voxtrain.model.released import ReleasedModel
from voxtrain.preflight import plan_start, world_faults
from voxtrain.report.charts import Curve, runs_chart
from voxtrain.settings import compose, load

Door = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], cache: Path) -> Door:
    """The front door in an empty working folder: checks that it exits 2, and gives what it told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXTRAIN_CACHE", str(cache))

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["voxtrain", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capfd.readouterr().err
        assert stopped.value.code == 2, told
        return told

    return call


@pytest.mark.slow
def test_a_sweep_never_starts_in_the_folder_of_another(refused: Door) -> None:
    """Its jobs kept the checkpoints and verdicts of the first sweep, under figures of the second."""
    Path("mine/0_demo").mkdir(parents=True)
    told = refused("-m", "+recipe=demo", "train.grad_accum=1,2", "hydra.sweep.dir=mine")
    assert "hydra.sweep.dir" in told
    assert "not empty" in told
    assert [path.name for path in Path("mine").iterdir()] == ["0_demo"]


def test_a_run_keeps_its_colour_when_the_run_before_it_has_no_losses() -> None:
    """A failed job gave its colour to the next job's curve, while the table kept the colours by place."""
    empty, drawn = Curve("failed", [], []), Curve("good", [0, 8], [1.0, 0.5])
    chart = runs_chart("loss", [empty, drawn], "rows", marked=True)
    assert "var(--s2)" in chart
    assert "var(--s1)" not in chart


@pytest.mark.slow
def test_an_unknown_option_is_told_with_the_options_alone(refused: Door) -> None:
    """Hydra's search path stood among them."""
    told = refused("+recipe=demoo")
    assert "demo, full_sft_12gb, full_sft_16gb, full_sft_24gb, full_sft_80gb, lora_24gb, lora_demo, preflight\n" in told
    assert "search" not in told


@pytest.mark.slow
def test_several_values_without_m_are_told_as_a_sweep(refused: Door) -> None:
    told = refused("+recipe=demo", "train.grad_accum=2,4")
    assert "-m" in told
    assert "train.grad_accum=2,4" in told


@pytest.mark.slow
def test_a_fault_of_a_value_and_faults_of_files_are_told_together(refused: Door) -> None:
    """The model folder and the run folder came only after the value was mended."""
    Path("mine").mkdir()
    Path("mine/metrics.csv").write_text("step\n")
    files = ("model.path=/no/such/folder", "hydra.run.dir=mine", "data.manifest=none.jsonl")
    told = refused("+recipe=demo", "train.batch_size=-1", *files)
    for words in ("4 things are wrong", "train.batch_size", "/no/such/folder", "not empty", "none.jsonl"):
        assert words in told


def test_nothing_is_fetched_from_the_hub_while_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gigabytes came down before the missing manifest was told."""

    def fetch(_: ReleasedModel) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(ReleasedModel, "folder", fetch)
    start = plan_start(["+recipe=lora_24gb", "data.manifest=/no/such/rows.jsonl"])
    assert any("rows.jsonl" in fault.where for fault in world_faults(start))


@pytest.mark.parametrize("given", ["optimizer.lr=inf", "optimizer.weight_decay=inf", "train.loss_weights.diff=inf"])
def test_infinite_settings_are_refused(given: str) -> None:
    """An infinite learning rate was let in, and broke the run in its second step."""
    with pytest.raises(InputError) as raised:
        compose(["+recipe=demo", given])
    assert [fault.where for fault in raised.value.faults] == [given.replace("=", " = ")]


@pytest.mark.parametrize("manifest", ["data.manifest=", "data.manifest=."])
def test_a_manifest_that_names_nothing_is_told_once(refused: Door, manifest: str) -> None:
    assert "One thing is wrong" in refused("+recipe=demo", manifest)


def test_the_settings_of_a_run_folder_hold_in_any_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path
) -> None:
    """A run started with relative paths could be resumed and judged from its own working folder alone."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_folder)
    given = ["+recipe=demo", "data.manifest=rows.jsonl", "data.cache_dir=cache", "model.path=model"]
    plain: dict[str, Any] = compose(given).plain
    assert plain["data"]["manifest"] == str(tmp_path / "rows.jsonl")
    assert plain["data"]["cache_dir"] == plain["model"]["cache_dir"] == str(tmp_path / "cache")
    assert plain["model"]["path"] == str(tmp_path / "model")
    Path("config.yaml").write_text(json.dumps(plain))  # JSON is YAML
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert load(tmp_path).plain == plain
    assert compose(["data.manifest=rows.jsonl"]).plain["model"]["path"] == "openbmb/VoxCPM2"


@pytest.mark.parametrize(
    "given", [("-m", "train.grad_accum=(1,2"), ("-m", "hydra.sweep.dir=${nope}/x"), ("hydra.run.dir=${nope}/x",)]
)
def test_a_command_line_that_hydra_cannot_read_is_no_traceback(refused: Door, given: tuple[str, ...]) -> None:
    told = refused("+recipe=demo", *given)
    assert "Traceback" not in told
    assert "One thing is wrong" in told
