"""Resumable states: bit for bit, strict, one good state at every instant."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from learner import WIDTH, Learner, optimizer_of
from torch import nn

from voxtrain.checkpoint import snapshot
from voxtrain.checkpoint.facts import read_facts
from voxtrain.checkpoint.folders import remove_folder, remove_leftovers
from voxtrain.checkpoint.optimizer_tree import take_apart
from voxtrain.checkpoint.resume import load_state
from voxtrain.checkpoint.snapshot import take_snapshot, write_state
from voxtrain.checkpoint.stream import lazily
from voxtrain.durable import read_json, write_json
from voxtrain.fault import InputError
from voxtrain.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def trained(state: str, steps: int, seed: int = 0) -> tuple[Learner, torch.optim.Optimizer]:
    module = Learner(total=steps, state=state, seed=seed)
    optimizer = optimizer_of(module.parameters(), state)
    train(module, optimizer, range(1, steps + 1))
    return module, optimizer


def train(module: Learner, optimizer: torch.optim.Optimizer, steps: Any) -> None:
    for step in steps:
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(step))
        (module.layer(x) - x.roll(1, dims=1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        module.steps_done, module.rows_seen = step, 8 * step


def flat(optimizer: torch.optim.Optimizer) -> list[tuple[str, Any]]:
    return [(key, state[key]) for state in optimizer.state.values() for key in sorted(state)]


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("state", ["fp32", "8bit", "paged_8bit"])
@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit(run: RunFolder, state: str) -> None:
    whole, optimizer = trained(state, 10)
    part, part_optimizer = trained(state, 6)
    part.skipped = [2, 5]
    write_state(run, part, part_optimizer, "f")
    fresh = Learner(total=10, state=state, seed=99)
    fresh_optimizer = optimizer_of(fresh.parameters(), state)
    assert not torch.equal(fresh.layer.weight, part.layer.weight)
    assert load_state(run, fresh, fresh_optimizer) == 6
    assert (fresh.steps_done, fresh.rows_seen, fresh.skipped) == (6, 48, [2, 5])
    train(fresh, fresh_optimizer, range(7, 11))
    for mine, theirs in zip(fresh.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    found, wanted = flat(fresh_optimizer), flat(optimizer)
    assert len(found) >= 6
    assert [key for key, _ in found] == [key for key, _ in wanted]
    for (key, mine), (_, theirs) in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs, key
    kinds = {value.dtype for key, value in found if key in ("state1", "exp_avg")}
    assert kinds == ({torch.float32} if state == "fp32" else {torch.float32, torch.uint8}), "8-bit state was not tried"


def test_step_zero_has_a_state_without_moments(run: RunFolder) -> None:
    module, optimizer = trained("fp32", 0)
    assert write_state(run, module, optimizer, "f") == 0
    fresh = Learner(total=1, seed=3)
    assert load_state(run, fresh, optimizer_of(fresh.parameters(), "fp32")) == 0
    assert torch.equal(fresh.layer.weight, module.layer.weight)


def test_the_newer_state_is_complete_before_the_older_goes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    module, optimizer = trained("fp32", 2)
    write_state(run, module, optimizer, "f")
    train(module, optimizer, [3])
    seen: list[list[int]] = []

    def watched(folder: Path) -> None:
        seen.append(run.state_steps())
        read_facts(run)  # the newer one is whole
        remove_folder(folder)

    monkeypatch.setattr(snapshot, "remove_folder", watched)
    write_state(run, module, optimizer, "f")
    assert seen == [[2, 3]]
    assert run.state_steps() == [3]
    assert sorted(path.name for path in run.states.iterdir()) == ["step_0000003"]


@pytest.mark.parametrize("failing", ["write_safetensors", "write_json"])
def test_a_full_disk_leaves_the_older_state(run: RunFolder, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    module, optimizer = trained("fp32", 2)
    write_state(run, module, optimizer, "f")
    train(module, optimizer, [3])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(snapshot, failing, fail)
    with pytest.raises(OSError, match="no space"):
        write_state(run, module, optimizer, "f")
    assert [path.name for path in run.states.iterdir()] == ["step_0000002"]
    assert read_facts(run).step == 2


def test_a_state_is_written_once(run: RunFolder) -> None:
    module, optimizer = trained("fp32", 1)
    write_state(run, module, optimizer, "f")
    inode = (run.state(1) / "state.json").stat().st_ino
    write_state(run, module, optimizer, "f")
    assert (run.state(1) / "state.json").stat().st_ino == inode


@pytest.mark.slow
def test_marks_of_paged_tensors_are_not_saved(run: RunFolder) -> None:
    """A loaded copy is ordinary memory; were it marked as paged, the card would be handed a host address."""
    module, optimizer = trained("8bit", 2)
    for state in optimizer.state.values():
        state["state1"].is_paged = True
    write_state(run, module, optimizer, "f")
    plain, tensors = take_apart(optimizer.state_dict())
    assert len(tensors) >= 4
    assert not any(hasattr(value, "is_paged") for value in tensors.values())
    assert any(hasattr(value, "is_paged") for value in _tensors(optimizer.state_dict())), "nothing was marked"
    assert "is_paged" not in json.dumps(plain)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in _tensors(inner)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.slow
def test_paged_state_goes_back_into_the_optimizers_own_buffers(run: RunFolder) -> None:
    module, optimizer = trained("8bit", 3)
    write_state(run, module, optimizer, "f")
    fresh = Learner(total=3, seed=5)
    paging = optimizer_of(fresh.parameters(), "paged_8bit")
    made: list[torch.Tensor] = []

    def buffer(parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        made.append(torch.zeros(parameter.shape, dtype=dtype))
        return made[-1]

    paging.get_state_buffer = buffer  # type: ignore[attr-defined]
    load_state(run, fresh, paging)
    states = list(paging.state.values())
    assert {id(tensor) for tensor in made} == {id(state[name]) for state in states for name in ("state1", "state2")}
    assert any(bool(tensor.any()) for tensor in made)


class TestStrictness:
    def test_another_rank_is_told_with_both_numbers(self, run: RunFolder) -> None:
        four, eight = Adapter(4), Adapter(8)
        write_state(run, four, torch.optim.AdamW(four.parameters()), "f")
        with pytest.raises(InputError, match=r"rank 4, where tuning\.rank is 8"):
            load_state(run, eight, torch.optim.AdamW(eight.parameters()))

    def test_other_names_are_told(self, run: RunFolder) -> None:
        adapter = Adapter(4)
        write_state(run, adapter, torch.optim.AdamW(adapter.parameters()), "f")
        module = Learner(total=1)
        with pytest.raises(InputError, match=r"lacks 2 tensors that learn.*layer.bias.*holds 2"):
            load_state(run, module, optimizer_of(module.parameters(), "fp32"))

    def test_another_optimizer_is_told(self, run: RunFolder) -> None:
        module, optimizer = trained("fp32", 1)
        write_state(run, module, optimizer, "f")
        other = torch.optim.AdamW([{"params": [module.layer.weight]}, {"params": [module.layer.bias]}])
        with pytest.raises(InputError, match="optimizer's state does not fit"):
            load_state(run, module, other)

    @pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
    def test_a_file_cut_short_is_told(self, run: RunFolder, name: str) -> None:
        module, optimizer = trained("fp32", 1)
        write_state(run, module, optimizer, "f")
        path = run.state(1) / name
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(InputError, match=f"{name} was cut short"):
            load_state(run, module, optimizer)

    def test_a_missing_file_is_told(self, run: RunFolder) -> None:
        module, optimizer = trained("fp32", 1)
        write_state(run, module, optimizer, "f")
        (run.state(1) / "optimizer.safetensors").unlink()
        with pytest.raises(InputError, match=r"cannot be read.*optimizer.safetensors"):
            read_facts(run)

    def test_an_old_form_is_told(self, run: RunFolder) -> None:
        module, optimizer = trained("fp32", 1)
        write_state(run, module, optimizer, "f")
        facts = read_json(run.state(1) / "state.json")
        del facts["rows_seen"]
        write_json(run.state(1) / "state.json", facts)
        with pytest.raises(InputError, match="rows_seen"):
            read_facts(run)

    def test_no_state_is_told(self, run: RunFolder) -> None:
        with pytest.raises(InputError, match="no state"):
            read_facts(run)


class Adapter(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.ones(rank, 6))
        self.lora_B = nn.Parameter(torch.ones(6, rank))
        self.steps_done, self.rows_seen, self.skipped = 1, 8, list[int]()

    def learnt_tensors(self) -> dict[str, torch.Tensor]:
        return {f"q.{name}": value.detach() for name, value in self.named_parameters()}


@pytest.mark.slow
def test_the_announced_bytes_are_nearly_those_written(run: RunFolder) -> None:
    module, optimizer = trained("8bit", 2)
    expected = take_snapshot(module, optimizer, None, lazily(module.learnt_tensors(), None)).nbytes
    write_state(run, module, optimizer, "f")
    written = sum(path.stat().st_size for path in run.state(2).iterdir())
    assert abs(written - expected) < 8192  # headers and the index of the archive


def test_leftovers_of_a_killed_process_go_and_the_rest_stays(run: RunFolder) -> None:
    for folder in (run.checkpoints, run.states):
        for name in ("step_0000001", ".writing_12_step_0000002", ".replaced_12_step_0000001", ".removing_step_0000003"):
            (folder / name).mkdir(parents=True)
    (run.checkpoints / ".writing_12_latest").symlink_to("step_0000001")
    removed = remove_leftovers(run)
    assert len(removed) == 7
    assert [path.name for folder in (run.checkpoints, run.states) for path in folder.iterdir()] == ["step_0000001"] * 2


def test_a_folder_on_its_way_out_is_no_longer_numbered(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.state(1).mkdir(parents=True)
    seen: list[list[int]] = []
    rmtree = shutil.rmtree

    def watched(path: Path, ignore_errors: bool = False) -> None:
        seen.append(run.state_steps())
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", watched)
    remove_folder(run.state(1))
    assert seen[-1] == []
    assert list(run.states.iterdir()) == []
