"""Compiled kernels: which there are, where their code is kept, and what happens where it cannot be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from voxtrain.model import operators
from voxtrain.model.cpu import kernel, prepare, products
from voxtrain.model.cpu.prepare import KERNELS
from voxtrain.model.cpu.turn_kernels import turned_matrices


def test_code_is_kept_by_the_source_of_all_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names() == {
        "attention",
        "attention_back",
        "gate",
        "gate_back",
        "norm",
        "norm_back",
        "turned_matrices",
    }
    monkeypatch.setattr(kernel, "FOLDER", tmp_path)
    found = []
    for file, text in (("kernels", "@Kernel"), ("other", "no kernel"), ("kernels", "@Kernel else")):
        (tmp_path / f"{file}.py").write_text(text)
        found.append(kernel.kept_folder.__wrapped__())
    assert found[0] == found[1] != found[2]
    assert {path.parent for path in found} == {tmp_path / "__pycache__"}


def names() -> set[str]:
    assert kernel.available()
    assert products.available()
    return {each.name for each in KERNELS}


def test_where_nothing_can_be_written_code_is_compiled_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kernel, "FOLDER", tmp_path / "file")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert kernel.kept_folder.__wrapped__() is None


def test_where_another_user_made_the_folder_the_own_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, home = tmp_path / "package", tmp_path / "home"
    package.mkdir()
    monkeypatch.setattr(kernel, "FOLDER", package)
    monkeypatch.setenv("HOME", str(home))
    assert kernel.kept_folder.__wrapped__().is_relative_to(package)
    monkeypatch.setattr(os, "access", lambda path, mode: package not in Path(path).parents)
    assert kernel.kept_folder.__wrapped__().is_relative_to(home / ".cache" / "voxtrain")


def test_a_full_disk_costs_the_next_run_some_seconds_and_this_one_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    compiling = kernel.cfunc

    def full(*arguments: Any, cache: bool = False, **options: Any) -> Any:
        asked.append(cache)
        if cache:
            raise OSError(28, "No space left on device")
        return compiling(*arguments, **options)

    monkeypatch.setattr(kernel, "cfunc", full)
    fresh = kernel.Kernel(turned_matrices._function)
    matrix = torch.arange(6.0).view(2, 3)
    result = torch.empty(3, 2)
    kernel.run(fresh, 1, 1, 2, 3, matrix, result)
    assert torch.equal(result, matrix.t())
    assert asked == [True, False]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often all kernels were made ready."""
    asked: list[int] = []
    monkeypatch.setattr(prepare, "prepare", lambda: asked.append(1))
    return asked


def test_what_does_not_compute_with_kernels_compiles_none(compiled: list[int]) -> None:
    cpu = torch.device("cpu")
    operators.prepare("plain", cpu, torch.float32)
    operators.prepare("cpu", cpu, torch.bfloat16)
    operators.prepare("cpu", torch.device("cuda"), torch.float32)
    assert compiled == []
    operators.prepare("cpu", cpu, torch.float32)
    assert compiled == [1]
