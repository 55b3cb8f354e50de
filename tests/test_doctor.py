"""The doctor: every line says ok or how to mend it, and only what every run needs is an error."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from typing import Any

import pytest
from memory_material import alike, architecture, stack

from voxtrain import doctor
from voxtrain.doctor import Finding, examine, is_broken, main, recipe_findings
from voxtrain.fault import InputError
from voxtrain.memory.plan import Work, predict


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


@pytest.mark.slow
def test_recipes_are_told_with_their_peak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = predict(Work(architecture("tiny"), None, alike(1, 310, 188, 8)), stack("24gb"), 0, 12.0)
    large = replace(small, peak_gib=22.2, fits=False, host_gib=21.4)
    monkeypatch.setattr("voxtrain.run_plan.recipes_for_cards", lambda: ["small", "large"])
    plans = [("small", small), ("large", large)]
    monkeypatch.setattr("voxtrain.run_plan.recipe_plans", lambda names, card_gib: iter(plans))
    monkeypatch.setattr(doctor, "examine", list)
    assert main(["--card", "12gb"]) == 0
    said = capsys.readouterr().out
    assert "ok       recipe small: predicted peak 0.5 GiB on 12.0, 11.0 to spare" in said
    assert "no       recipe large: predicted peak 22.2 GiB on 12.0, 10.7 too much, and 21.4 GiB of host memory" in said
    assert "-> `python -m voxtrain.memory +recipe=large --card 12288`" in said
    assert main([]) == 0  # no GPU and no card: nothing to plan for
    assert "recipe" not in capsys.readouterr().out
    with pytest.raises(InputError, match="no card that voxtrain knows"):
        main(["--card", "abacus"])


@pytest.mark.slow
def test_which_recipes_fit_16_gb() -> None:
    found = {finding.name: finding.ok for finding in recipe_findings(16.0)}
    assert found["recipe lora_24gb"]
    assert found["recipe full_sft_16gb"]
    assert not found["recipe full_sft_24gb"]
    assert not any("demo" in name for name in found)
