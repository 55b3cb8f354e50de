"""The doctor: every line says ok or how to mend it, and only what every run needs is an error."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest

from voxtrain import doctor
from voxtrain.doctor import Finding, examine, is_broken, main


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine()}


def test_everything_is_looked_at(findings: dict[str, Finding]) -> None:
    assert set(findings) >= {
        "python", "torch", "torch and torchaudio are a pair", "voxcpm", "bitsandbytes (8-bit optimizer state)",
        "CUDA", "RAM", "free disk here", "extra demo (speech made on the spot)", "wandb",
    }  # fmt: skip
    assert all(finding.ok or finding.remedy for finding in findings.values())
    assert not any(finding.ok and finding.remedy for finding in findings.values())


def test_this_machine_can_run_the_tests(findings: dict[str, Finding]) -> None:
    assert findings["torch"].ok
    assert findings["torch and torchaudio are a pair"].ok
    assert findings["voxcpm"].ok
    assert not is_broken(list(findings.values()))


def test_a_torchaudio_beside_another_torch_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.15.0+cu130", "torchaudio": "2.11.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    found = doctor._torchaudio()
    assert not found.ok
    assert found.required
    assert "torch 2.15.0+cu130, torchaudio 2.11.0" in found.found
    assert "torch==2.11.0" in found.remedy


def test_what_cannot_be_imported_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise OSError("undefined symbol: _ZN3c10\nand more")

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    found = doctor._voxcpm()
    assert not found.ok
    assert found.found.endswith("undefined symbol: _ZN3c10")
    assert found.remedy == "pip install voxcpm==2.0.3"


@pytest.mark.parametrize(("required", "code"), [(True, 1), (False, 0)])
def test_only_what_every_run_needs_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], required: bool, code: int
) -> None:
    found = [Finding("thing", False, required, "not there", "fetch it"), Finding("other", True, True, "1.0", "")]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main([]) == code
    said = capsys.readouterr().out
    assert ("BROKEN" in said) == required
    assert "-> fetch it" in said
    assert main(["--json"]) == code
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is (code == 0)
    assert record["findings"][0]["remedy"] == "fetch it"


def test_a_machine_without_the_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def nothing() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", nothing)
    [found] = doctor._gpus()
    assert (found.ok, found.required) == (False, False)
    assert builtins.bool(found.remedy)
