"""Numbered checkpoints: the library's bytes, upstream's files, complete or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from voxtrain.checkpoint import writer
from voxtrain.checkpoint.stream import LazyTensor, lazily, write_safetensors
from voxtrain.checkpoint.writer import point_latest, write_checkpoint
from voxtrain.durable import read_json
from voxtrain.fault import InputError
from voxtrain.run_folder import RunFolder

LORA = {"r": 2, "alpha": 4, "enable_lm": True}


def tensors() -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 5, generator=gen),
        "a.weight": torch.randn(7, generator=gen),
        "scalar": torch.tensor(1.5),
        "count": torch.arange(4),
    }


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "notes.txt"):
        (folder / name).write_text(name)
    (folder / "audiovae.pth").write_bytes(b"vae")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def write(run: RunFolder, step: int, base: Path, lora: dict[str, Any] | None = None, dtype: Any = "bf16") -> Path:
    return write_checkpoint(run, step, tensors(), base, lora, dtype, {"rows_seen": 8 * step})


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_streamed_bytes_are_the_librarys(tmp_path: Path, dtype: torch.dtype | None) -> None:
    every = {
        **tensors(),
        "bf": torch.ones(3).bfloat16(),
        "half": torch.ones(3).half(),
        "double": torch.ones(2).double(),
        "bytes": torch.zeros(5, dtype=torch.uint8),
        "flags": torch.ones(3, dtype=torch.bool),
        "ints": torch.ones(3, dtype=torch.int32),
        "shorts": torch.ones(5, dtype=torch.int16),
        "chars": torch.ones(5, dtype=torch.int8),
        "nothing": torch.zeros(0, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "ünïcode": torch.zeros(1),
    }
    cast = {k: (v.to(dtype) if dtype and v.is_floating_point() else v).contiguous() for k, v in every.items()}
    save_file(cast, tmp_path / "library", metadata={"format": "pt"})
    digest = write_safetensors(tmp_path / "ours", lazily(every, dtype))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()
    assert digest == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()


def test_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []
    held: list[weakref.ref[Tensor]] = []

    def make() -> Tensor:
        alive.append(sum(1 for reference in held if reference() is not None))
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        return tensor

    lazy = LazyTensor((1000,), torch.float32, lambda: nullcontext(make()))
    write_safetensors(tmp_path / "x", {f"t{n}": lazy for n in range(10)})
    assert len(held) == 10
    assert max(alive) <= 1


def test_a_full_checkpoint_has_upstreams_files_and_its_own_evidence(run: RunFolder, model_folder: Path) -> None:
    folder = write(run, 40, model_folder)
    names = {path.name for path in folder.iterdir()}
    others = {"config.json", "tokenizer.json", "tokenizer_config.json", "audiovae.pth"}
    assert names == {"model.safetensors", "step.json"} | others
    loaded = load_file(folder / "model.safetensors")
    assert {k: v.dtype for k, v in loaded.items()} == {
        "a.weight": torch.bfloat16, "b.weight": torch.bfloat16, "scalar": torch.bfloat16, "count": torch.int64,
    }  # fmt: skip
    assert all(torch.equal(loaded[name], value.to(loaded[name].dtype)) for name, value in tensors().items())
    header = (folder / "model.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"] == {"format": "pt"}
    facts = read_json(folder / "step.json")
    assert (facts["step"], facts["rows_seen"]) == (40, 320)
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "step.json"}
    assert facts["sha256"] == sums


def test_big_files_are_linked_and_the_config_is_a_copy(run: RunFolder, model_folder: Path) -> None:
    folder = write(run, 0, model_folder)
    assert (folder / "audiovae.pth").samefile(model_folder / "audiovae.pth")
    assert not (folder / "config.json").samefile(model_folder / "config.json")


def test_a_snapshot_of_symlinks_is_linked_to_its_files(run: RunFolder, model_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model_folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    folder = write(run, 0, snapshot)
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert (folder / "config.json").read_text() == "config.json"


def test_where_links_cannot_be_files_are_copied(
    run: RunFolder, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    folder = write(run, 0, model_folder)
    assert not (folder / "audiovae.pth").samefile(model_folder / "audiovae.pth")
    assert (folder / "audiovae.pth").read_bytes() == b"vae"


def test_an_adapter_is_written_in_fp32_with_its_base(run: RunFolder, model_folder: Path) -> None:
    folder = write(run, 3, model_folder, lora=LORA)
    assert {path.name for path in folder.iterdir()} == {"lora_weights.safetensors", "lora_config.json", "step.json"}
    assert load_file(folder / "lora_weights.safetensors")["b.weight"].dtype == torch.float32
    assert read_json(folder / "lora_config.json") == {"base_model": str(model_folder.resolve()), "lora_config": LORA}
    assert set(read_json(folder / "step.json")["sha256"]) == {"lora_weights.safetensors", "lora_config.json"}


def test_a_step_is_written_once(run: RunFolder, model_folder: Path) -> None:
    folder = write(run, 5, model_folder)
    before = (folder / "model.safetensors").stat().st_ino
    write(run, 5, model_folder, dtype="fp32")
    assert (folder / "model.safetensors").stat().st_ino == before
    assert load_file(folder / "model.safetensors")["a.weight"].dtype == torch.bfloat16


def test_latest_is_a_relative_link_to_the_newest(run: RunFolder, model_folder: Path) -> None:
    latest = run.checkpoints / "latest"
    for step in (0, 20, 10):
        write(run, step, model_folder)
    assert latest.is_symlink()
    assert str(latest.readlink()) == "step_0000020"
    run.root.rename(run.root.with_name("moved"))
    assert RunFolder(run.root.with_name("moved")).checkpoints.joinpath("latest").resolve().name == "step_0000020"


def test_latest_never_vanishes_while_it_is_moved(
    run: RunFolder, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, 0, model_folder)
    run.checkpoint(1).mkdir()
    replace, seen = Path.replace, []

    def watched(self: Path, target: Path) -> Path:
        seen.append((run.checkpoints / "latest").resolve())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    point_latest(run)
    assert seen == [run.checkpoint(0)]
    assert (run.checkpoints / "latest").resolve() == run.checkpoint(1)


@pytest.mark.parametrize("failing", ["write_safetensors", "link_or_copy", "write_json"])
def test_a_write_that_fails_leaves_nothing(
    run: RunFolder, model_folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write(run, 1, model_folder)
    before = sorted(run.checkpoints.iterdir())

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(writer, failing, fail)
    with pytest.raises(OSError, match="no space"):
        write(run, 2, model_folder)
    assert sorted(run.checkpoints.iterdir()) == before
    assert (run.checkpoints / "latest").resolve() == run.checkpoint(1)


@pytest.mark.parametrize("missing", ["config.json", "audiovae.pth"])
def test_an_incomplete_base_is_named(run: RunFolder, model_folder: Path, missing: str) -> None:
    (model_folder / missing).unlink()
    with pytest.raises(InputError, match=missing):
        write(run, 0, model_folder)
    assert not run.checkpoint(0).exists()


def test_the_order_of_names_changes_no_byte(tmp_path: Path) -> None:
    names = [f"layer.{n}.weight" for n in range(20)]
    ways = (names, names[::-1], sorted(names), names[7:] + names[:7])
    digests = [
        write_safetensors(tmp_path / str(way), lazily({name: torch.zeros(3) for name in given}, None))
        for way, given in enumerate(ways)
    ]
    assert len(set(digests)) == 1


@pytest.mark.slow
def test_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from voxtrain.checkpoint.stream import lazily, write_safetensors\n"
        "names = {f'layer.{n}.weight' for n in range(20)}\n"  # a set: its order differs from process to process
        "print(write_safetensors(Path(sys.argv[1]), lazily({n: torch.zeros(3) for n in names}, None)))"
    )
    there = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], check=True, capture_output=True, text=True)
    here = write_safetensors(tmp_path / "y", lazily({f"layer.{n}.weight": torch.zeros(3) for n in range(20)}, None))
    assert there.stdout.strip() == here
