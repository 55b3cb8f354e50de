"""Files that are not what was written: a clear message, nothing loaded, nothing else touched."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import xxhash
from learner import WIDTH, Learner, checkpoint_plan, fit, optimizer_of

from voxtrain.checkpoint.callback import SaveCheckpoints
from voxtrain.checkpoint.digests import NUMBERED, STATE, digest_of
from voxtrain.checkpoint.facts import Origin, check_origin, read_facts
from voxtrain.checkpoint.resume import load_state
from voxtrain.checkpoint.snapshot import write_state
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.durable import read_json, write_json
from voxtrain.fault import InputError
from voxtrain.run_folder import RunFolder

FILES = ["weights.safetensors", "optimizer.safetensors", "optimizer.json"]
PACKAGE = Path(__file__).parents[1] / "voxtrain"


@pytest.fixture
def saved(tmp_path: Path) -> RunFolder:
    """The state of step 3."""
    run, module = RunFolder(tmp_path / "run"), Learner(total=3)
    optimizer = optimizer_of(module.parameters(), "fp32")
    for step in range(1, 4):
        module.layer(torch.ones(1, WIDTH) * step).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    module.steps_done = 3
    write_state(run, module, optimizer, "f")
    return run


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_digests_are_the_libraries_own(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 3_000_000)  # more than a piece
    assert digest_of(path, NUMBERED) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest_of(path, STATE) == xxhash.xxh3_128(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_one_flipped_bit_anywhere_is_told_and_nothing_is_loaded(saved: RunFolder, name: str, place: float) -> None:
    path = saved.state(3) / name
    flip(path, int(path.stat().st_size * place) if place > 0 else int(place))
    module = Learner(total=3, seed=9)
    optimizer = optimizer_of(module.parameters(), "fp32")
    before = module.layer.weight.clone()
    with pytest.raises(InputError, match=rf"{re.escape(name)} is not what was written"):
        load_state(saved, module, optimizer)
    assert torch.equal(module.layer.weight, before)
    assert not optimizer.state
    assert module.steps_done == 0


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_told_before_anything_is_read(saved: RunFolder, name: str) -> None:
    path = saved.state(3) / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=f"{name} was cut short"):
        read_facts(saved)


@pytest.mark.parametrize(("old", "new"), [('"step": 3', '"step": 2'), ('"rows_seen": 0', '"rows_seen": 8'), ("{", "[")])
def test_a_changed_state_json_is_told(saved: RunFolder, old: str, new: str) -> None:
    path = saved.state(3) / "state.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match="the state cannot be read"):
        read_facts(saved)


def test_other_rows_or_settings_are_refused_and_other_versions_told(saved: RunFolder) -> None:
    folder = saved.state(3)
    facts = replace(read_facts(saved), data="rows", versions={"torch": "2.11", "voxcpm": None})
    write_json(folder / "state.json", asdict(replace(facts, own_xxh3_128=facts.digest())))
    known = read_facts(saved)
    assert (
        check_origin(folder, known, Origin("f", "f", "rows", {"torch": "2.11", "voxcpm": None}), new_course=False) == []
    )
    assert check_origin(
        folder, known, Origin("f", "f", "rows", {"torch": "2.12", "voxcpm": "2"}), new_course=False
    ) == [
        "torch was 2.11, is 2.12",
        "voxcpm was absent, is 2",
    ]
    with pytest.raises(InputError) as caught:
        check_origin(folder, known, Origin("g", "f", "others", {}), new_course=False)
    assert [fault.what for fault in caught.value.faults] == [
        "it was saved under other settings than those in config.yaml (their fingerprints differ)",
        "it learnt from other rows than those in data/train.jsonl",
    ]


def test_a_run_does_not_go_on_from_rows_that_changed(tmp_path: Path) -> None:
    run, base = RunFolder(tmp_path / "run"), tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "audiovae.pth").write_bytes(b"vae")
    rows = run.data / "train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text('{"id": "a"}\n')

    def saver(*, resumes: bool) -> SaveCheckpoints:
        plan = checkpoint_plan(every=2, state_every=2)
        return SaveCheckpoints(run, plan, 4, base, None, {"seed": 1}, StopRequest(), resumes, {"torch": "2"})

    module = Learner(4)
    stopping = saver(resumes=False)
    module.at_step = lambda step: stopping._stop.request("enough") if step == 2 else None
    fit(module, stopping)
    facts = read_json(run.checkpoint(2) / "step.json")
    assert (facts["data"], facts["versions"]) == (hashlib.sha256(rows.read_bytes()).hexdigest(), {"torch": "2"})
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    rows.write_text('{"id": "b"}\n')
    with pytest.raises(InputError, match=r"other rows than those in data/train\.jsonl"):
        fit(Learner(4, done=2), saver(resumes=True))
    assert {path: path.read_bytes() for path in before if path != rows} == {
        path: content for path, content in before.items() if path != rows
    }


def test_nothing_from_disk_is_unpickled() -> None:
    """torch.load only with weights_only, and no other door to pickle (a pipe between our own processes is none)."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    calls = [(path.name, call) for path, text in sources.items() for call in re.findall(r"torch\.load\([^)]*\)", text)]
    assert calls, "the scan found no torch.load, so it proves nothing"
    assert [call for call in calls if "weights_only=True" not in call[1]] == []
    doors = re.compile(r"pickle\.load\(|Unpickler|allow_pickle=True|shelve\.|joblib\.load|yaml\.load\(")
    assert [path.name for path, text in sources.items() if doors.search(text)] == []
