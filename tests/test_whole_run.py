"""Whole runs in processes of their own: what they leave, upstream's view of it, and going on after a stop."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from voxtrain.durable import read_json, read_jsonl, read_log_rows
from voxtrain.run_folder import SPLITS, RunFolder

pytestmark = pytest.mark.slow

SHORT = ("train.max_steps=30", "checkpoint.every=10", "checkpoint.state_every=10", "listening.max_seconds=1.0")


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("whole_run_cache")
    return {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def voxtrain(*arguments: str, cwd: Path, env: dict[str, str], door: str = "voxtrain") -> Finished:
    command = [sys.executable, "-m", door, *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=600)
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session", params=["demo", "lora_demo"])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> RunFolder:
    """A finished run of each tuning on speech made on the spot."""
    where = tmp_path_factory.mktemp(request.param)
    done = voxtrain(f"+recipe={request.param}", *SHORT, "hydra.run.dir=run", cwd=where, env=environment)
    assert done.code == 0, done.out + done.err
    (where / "said.txt").write_text(done.err + done.out)
    return RunFolder(where / "run")


def test_files_of_the_contract(run: RunFolder) -> None:
    wanted = [run.config, run.environment, run.run, run.metrics, run.memory, run.report, run.selection]
    wanted += [run.evaluated_checkpoints, run.evaluated_rows, run.listening_page, run.listening_table]
    wanted += [run.data / name for name in ("audit.json", "rejects.jsonl", "split.json")]
    assert [path for path in wanted if not path.is_file()] == []
    left_over = [p for p in run.root.rglob("*") if p.name.startswith((".writing", ".replaced")) or p.suffix == ".tmp"]
    assert left_over == []


def test_checkpoints_are_step_0_each_every_and_the_last_each_once(run: RunFolder) -> None:
    assert run.checkpoint_steps() == [0, 10, 20, 30]
    assert run.state_steps() == [30]
    assert not run.latest.readlink().is_absolute()
    assert run.latest.resolve().name == "step_0000030"
    rows = read_log_rows(run.metrics)
    assert [int(row["step"]) for row in rows] == list(range(1, 31))
    assert read_json(run.checkpoint(20) / "step.json")["rows_seen"] == 20 * 8


def test_evidence_of_completion(run: RunFolder) -> None:
    record = read_json(run.run)
    assert (record["status"], record["exit_code"], record["steps"]) == ("finished", 0, 30)
    assert record["evidence"] == {"last_logged_step": 30, "last_checkpoint": 30, "last_state": 30, "complete": True}


def test_ledger_and_split(run: RunFolder) -> None:
    audit = read_json(run.data / "audit.json")
    assert audit["rows_in"] == audit["rows_kept"] + sum(audit["rejects_by_rule"].values())
    assert set(audit["rejects_by_rule"]) >= {"empty_text", "boilerplate", "too_short"}
    parents = [{row["parent"] for row in read_jsonl(run.data / f"{split}.jsonl")} for split in SPLITS]
    assert all(parents)
    assert sum(map(len, parents)) == len(set.union(*parents)), "a parent is in two splits"


def test_selection_names_a_trained_checkpoint(run: RunFolder) -> None:
    selection = read_json(run.selection)
    assert selection["selected_step"] in {10, 20, 30} & set(selection["tie_set"])
    with run.evaluated_checkpoints.open() as table:
        losses = {int(row["step"]): float(row["loss/total"]) for row in csv.DictReader(table)}
    assert list(losses) == [0, 10, 20, 30]
    assert selection["best_step"] == min((10, 20, 30), key=losses.__getitem__)
    by_rule = {"lowest": selection["best_step"], "earliest_in_tie_set": min(selection["tie_set"])}
    assert selection["passed_over"] or selection["selected_step"] == by_rule[selection["rule_in_force"]]
    assert losses[30] < losses[0]


def test_the_run_ends_by_saying_what_was_selected_and_where_the_report_is(run: RunFolder) -> None:
    end = "\n".join((run.root.parent / "said.txt").read_text().splitlines()[-12:])
    assert f"Selected: step {read_json(run.selection)['selected_step']}" in end
    assert str(run.report) in end
    assert "Traceback" not in (run.root.parent / "said.txt").read_text()


def test_base_weights_do_not_move_under_lora_and_all_move_under_full(run: RunFolder) -> None:
    first, last = run.checkpoint(0), run.checkpoint(30)
    if (last / "lora_weights.safetensors").exists():
        before, after = load_file(first / "lora_weights.safetensors"), load_file(last / "lora_weights.safetensors")
        assert all((value == 0).all() for name, value in before.items() if name.endswith("lora_B"))
        assert not (last / "model.safetensors").exists()
        assert sum((before[name] != after[name]).any().item() for name in after) == len(after)
    else:
        before, after = load_file(first / "model.safetensors"), load_file(last / "model.safetensors")
        assert sum((before[name] != after[name]).any().item() for name in after) > 0.95 * len(after)


def test_upstream_loads_the_checkpoint_and_speaks(run: RunFolder) -> None:
    from voxcpm.model.voxcpm2 import LoRAConfig, VoxCPM2Model

    folder = run.checkpoint(30)
    if (folder / "lora_config.json").exists():
        info = read_json(folder / "lora_config.json")
        lora = LoRAConfig(**info["lora_config"])
        model = VoxCPM2Model.from_local(info["base_model"], optimize=False, device="cpu", lora_config=lora)
        loaded, skipped = model.load_lora_weights(str(folder))
        assert loaded
        assert skipped == []
    else:
        model = VoxCPM2Model.from_local(str(folder), optimize=False, device="cpu")
        own = {name for name in model.state_dict() if not name.startswith("audio_vae.")}
        assert set(load_file(folder / "model.safetensors")) == own
    assert model.generate(target_text="hello there", max_len=8, inference_timesteps=3).abs().max() > 0


def test_validation_again_judges_nothing_new_and_says_the_same(run: RunFolder, environment: dict[str, str]) -> None:
    before = (run.evaluated_rows.read_bytes(), run.evaluated_checkpoints.read_text(), read_json(run.selection))
    done = voxtrain(str(run.root), cwd=run.root.parent, env=environment, door="voxtrain.validation")
    assert done.code == 0, done.err
    assert (run.evaluated_rows.read_bytes(), run.evaluated_checkpoints.read_text(), read_json(run.selection)) == before


def test_a_finished_run_says_so(run: RunFolder, environment: dict[str, str]) -> None:
    done = voxtrain(f"resume={run.root}", cwd=run.root.parent, env=environment)
    assert (done.code, "is finished" in done.out) == (0, True), done.err


def test_report_opens_from_disk_without_the_network(run: RunFolder) -> None:
    for page in (run.report, run.listening_page):
        assert "http://" not in page.read_text().replace("http://www.w3.org", "")


def test_the_checker_of_the_contract(shared: Path, run: RunFolder) -> None:
    tuning = "lora" if (run.checkpoint(30) / "lora_config.json").exists() else "full"
    command = [sys.executable, str(shared / "check_run.py"), str(run.root), tuning]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("recipe", ["demo", "lora_demo"])
def test_real_speech_with_planted_faults(
    shared: Path, recipe: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    speech = shared / "speech"
    words = (f"data.manifest={speech}/manifest_dirty.jsonl", "data.group_by=parent", "hydra.run.dir=run")
    done = voxtrain(f"+recipe={recipe}", *words, *SHORT, cwd=tmp_path, env=environment)
    assert done.code == 0, done.err
    tuning = "lora" if recipe == "lora_demo" else "full"
    checker = [sys.executable, str(shared / "check_run.py"), "run", tuning, f"{speech}/manifest_dirty.labels.jsonl"]
    checked = subprocess.run(checker, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def start(*arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "voxtrain", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_step(run: RunFolder, step: int, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        rows = read_log_rows(run.metrics)
        if rows and int(rows[-1]["step"]) >= step:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError(f"step {step} never came")


BF16 = ("+recipe=demo", "memory=16gb", "memory.autocast=false")  # stochastic rounding, 8-bit state; no GPU
BEYOND = ("+recipe=lora_demo", "tuning.locenc=true", "tuning.stop_head=true", "memory.state=8bit")


@pytest.mark.parametrize(
    ("how", "given"),
    [
        pytest.param(signal.SIGTERM, ("+recipe=demo", "memory.state=8bit"), id="demo-SIGTERM"),
        pytest.param(signal.SIGKILL, ("+recipe=demo", "memory.state=8bit"), id="demo-SIGKILL"),
        pytest.param(signal.SIGTERM, ("+recipe=lora_demo", "memory.state=8bit"), id="lora_demo-SIGTERM"),
        pytest.param(signal.SIGKILL, ("+recipe=lora_demo", "memory.state=8bit"), id="lora_demo-SIGKILL"),
        pytest.param(signal.SIGKILL, BF16, id="16gb-SIGKILL"),
        pytest.param(signal.SIGKILL, BEYOND, id="lora_beyond_upstream-SIGKILL"),
    ],
)
def test_resumed_equals_uninterrupted(
    how: signal.Signals, given: tuple[str, ...], tmp_path: Path, environment: dict[str, str]
) -> None:
    quick = (*given, *SHORT, "validation.when=never")
    whole = RunFolder(tmp_path / "whole")
    assert voxtrain(*quick, "hydra.run.dir=whole", cwd=tmp_path, env=environment).code == 0

    broken = RunFolder(tmp_path / "broken")
    process = start(*quick, "hydra.run.dir=broken", cwd=tmp_path, env=environment)
    wait_for_step(broken, 13, process)
    process.send_signal(how)
    process.communicate(timeout=120)
    assert process.returncode == (3 if how == signal.SIGTERM else -signal.SIGKILL)
    stopped_at = broken.state_steps()[-1]
    assert stopped_at >= 10

    done = voxtrain(f"resume={broken.root}", cwd=tmp_path, env=environment)
    assert done.code == 0, done.err
    assert read_json(broken.run)["resumed_from_step"] == stopped_at
    timed = {"train/seconds", "train/peak_gib", "train/positions_per_second"}
    logged = [
        [{k: v for k, v in row.items() if k not in timed} for row in read_log_rows(r.metrics)] for r in (whole, broken)
    ]
    assert logged[0] == logged[1]
    states = [r.state(30) for r in (whole, broken)]
    ours, theirs = (load_file(state / "weights.safetensors") for state in states)
    assert ours.keys() == theirs.keys()
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16 if given == BF16 else torch.float32}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    of_optimizer = [sorted(state.glob("optimizer*")) for state in states]
    assert [path.name for path in of_optimizer[0]] == [path.name for path in of_optimizer[1]] != []
    for one, other in zip(*of_optimizer, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    probed = [read_json(r.memory)["probe"] for r in (whole, broken) if given == BF16]  # cards' stacks probe
    assert all(told["positions"] > 0 for told in probed)


def test_resume_refuses_another_learning_rate(run: RunFolder, environment: dict[str, str]) -> None:
    done = voxtrain(f"resume={run.root}", "optimizer.lr=0.5", cwd=run.root.parent, env=environment)
    assert done.code == 2
    assert "optimizer.lr" in done.err


def test_a_sweep_gives_a_run_folder_for_each_job_and_a_table(tmp_path: Path, environment: dict[str, str]) -> None:
    done = voxtrain(
        "-m", "+recipe=demo", *SHORT, "train.max_steps=10", "train.grad_accum=1,2", cwd=tmp_path, env=environment
    )
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    with (folder / "sweep.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["train.grad_accum"] for row in rows] == ["1", "2"]
    assert all(
        row["exit_code"] == "0" and float(row["val/loss/total"]) > 0 and row["selected_step"] == "10" for row in rows
    )
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["0_demo", "1_demo"]


def test_a_run_in_which_training_fails_says_so(tmp_path: Path, environment: dict[str, str]) -> None:
    done = voxtrain("+recipe=demo", *SHORT, "optimizer.lr=1e30", "train.max_grad_norm=0", cwd=tmp_path, env=environment)
    assert done.code == 1
    assert "not finite" in done.err
    assert "Traceback" not in done.err
    (record,) = (tmp_path / "outputs").rglob("run.json")
    assert json.loads(record.read_text())["status"] == "failed"
