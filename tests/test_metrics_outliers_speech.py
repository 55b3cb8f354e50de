"""On real speech: the trace names the clips that were planted, stays quiet where none were, and survives a kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outlier_material import written

from voxtrain.durable import read_json, read_jsonl, read_log_rows
from voxtrain.metrics.outlier_folder import OutlierFolder
from voxtrain.run_folder import DataFolder, RunFolder

pytestmark = pytest.mark.slow

SHORT = ("train.max_steps=120", "validation.when=never", "checkpoint.every=1000", "checkpoint.state_every=30")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("outlier_cache")
    return {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def labels(shared: Path) -> dict[str, str]:
    return {row["id"]: row["label"] for row in read_jsonl(shared / "speech" / "manifest_dirty.labels.jsonl")}


@pytest.fixture(scope="module")
def held_out(shared: Path, labels: dict[str, str]) -> tuple[str, ...]:
    """Two recordings for each split that is not learnt from, none of them with a planted clip: all five are learnt."""
    rows = read_jsonl(shared / "speech" / "manifest_dirty.jsonl")
    planted = {row["parent"] for row in rows if labels[row["id"]] == "short_audio"}
    first, second, third, fourth = sorted({row["parent"] for row in rows} - planted)[:4]
    return (
        "split=grouped",
        "split.validation_share=0",
        "split.test_share=0",
        f"split.validation_groups=['{first}','{second}']",
        f"split.test_groups=['{third}','{fourth}']",
    )


def command(manifest: Path, folder: str, *more: str) -> list[str]:
    """The demo on real speech with every rule off, eight rows a step."""
    given = ("+recipe=demo", "clean=none", f"data.manifest={manifest}", "data.group_by=parent", *SHORT, *more)
    return [sys.executable, "-m", "voxtrain", *given, f"hydra.run.dir={folder}"]


def done(command: list[str], where: Path, environment: dict[str, str]) -> str:
    ended = subprocess.run(
        command, cwd=where, env=environment, capture_output=True, text=True, check=False, timeout=800
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.fixture(scope="module")
def dirty(
    shared: Path, held_out: tuple[str, ...], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    where = tmp_path_factory.mktemp("dirty")
    said = done(command(shared / "speech" / "manifest_dirty.jsonl", "run", *held_out), where, environment)
    assert "came under suspicion" in said
    return RunFolder(where / "run")


def test_every_planted_clip_is_named_and_no_clean_row_is(dirty: RunFolder, labels: dict[str, str]) -> None:
    learnt = {row["id"] for row in read_jsonl(DataFolder(dirty.data).rows("train"))}
    planted = {name for name, label in labels.items() if label == "short_audio"}
    assert len(planted) == 5
    assert planted <= learnt
    named = {line["id"]: line["step"] for line in read_jsonl(OutlierFolder(dirty).exclude)}
    assert planted <= set(named)
    assert {labels[name] for name in named} <= {"short_audio", "empty_text", "boilerplate"}
    for name, step in named.items():
        trace = read_json(dirty.outlier(step))
        (row,) = (row for row in trace["rows"] if row["id"] == name)
        assert row["line"]
        assert row["suspect"]
        assert name in trace["suspects"]


def test_the_list_is_what_clean_exclude_takes(
    shared: Path, dirty: RunFolder, environment: dict[str, str], tmp_path: Path
) -> None:
    manifest, exclude = shared / "speech" / "manifest_dirty.jsonl", OutlierFolder(dirty).exclude
    given = (f"data.manifest={manifest}", "data.group_by=parent", "clean=none", f"clean.exclude={exclude}", "out=data")
    done([sys.executable, "-m", "voxtrain.manifest", *given], tmp_path, environment)
    named = {line["id"] for line in read_jsonl(exclude)}
    rejected = read_jsonl(DataFolder(tmp_path / "data").rejects)
    assert {reject["id"] for reject in rejected if reject["rule"] == "excluded"} == named


def test_a_killed_run_that_goes_on_leaves_the_same_traces(
    shared: Path, dirty: RunFolder, held_out: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    manifest = shared / "speech" / "manifest_dirty.jsonl"
    run = RunFolder(tmp_path / "run")
    process = subprocess.Popen(
        command(manifest, "run", *held_out),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(read_log_rows(run.metrics)) < 50:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.state_steps() == [30]
    done([sys.executable, "-m", "voxtrain", f"resume={run.root}"], tmp_path, environment)
    assert written(run) == written(dirty)


def test_on_clean_speech_it_stays_quiet(shared: Path, environment: dict[str, str], tmp_path: Path) -> None:
    said = done(command(shared / "speech" / "manifest.jsonl", "run"), tmp_path, environment)
    run = RunFolder(tmp_path / "run")
    assert list(written(run)) == ["rows.jsonl"]
    assert len(read_log_rows(run.metrics)) == 120
    assert "stood out" not in said
