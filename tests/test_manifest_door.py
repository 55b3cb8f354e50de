"""`python -m voxtrain.manifest`: what it prints, writes and answers, and that it imports no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from manifest_material import clean_rules, columns, grouped_split, write_lines

import voxtrain.manifest.__main__ as door
from voxtrain.durable import read_json
from voxtrain.fault import InputError
from voxtrain.preflight import plan_start, world_faults


@pytest.fixture
def manifest(clips: list[tuple[Path, str, str]], tmp_path: Path) -> Path:
    records = [{"audio": str(path), "text": text, "parent": parent} for path, text, parent in clips]
    return write_lines(tmp_path / "rows.jsonl", [*records, {**records[0], "text": "Thanks for [watching]!"}])


@pytest.fixture
def composed(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Settings without the other rooms; what was asked of `compose`."""
    asked: list[list[str]] = []

    def compose(overrides: list[str]) -> Any:
        asked.append(overrides)
        return SimpleNamespace(
            data=SimpleNamespace(
                manifest_path=lambda: manifest,
                group_by="parent",
                columns=columns(),
                sound_memory=lambda: manifest.with_name("audio_facts.sqlite"),
            ),
            clean=clean_rules(),
            split=grouped_split(),
            seed=1,
            train=SimpleNamespace(rows_per_step=lambda: 8),
        )

    monkeypatch.setattr("voxtrain.settings.compose", compose)
    return asked


def test_it_writes_into_the_folder_and_prints_the_ledger(
    composed: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert door.main(["data.manifest=rows.jsonl", f"out={tmp_path / 'made'}", "+recipe=demo"]) == 0
    assert composed == [["data.manifest=rows.jsonl", "+recipe=demo"]]
    audit = read_json(tmp_path / "made" / "audit.json")
    assert (audit["rows_in"], audit["contamination"]["rows_per_step"]) == (9, 8)
    printed = capsys.readouterr().out
    for word in ("rows in", "kept", "train, ", "rejects.jsonl", "Note: validation has"):
        assert word in printed


def test_what_is_refused_is_written_and_raised(
    composed: Any, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest.write_text(manifest.read_text().replace('"text": "clip', '"text": "", "was": "clip'))
    with pytest.raises(InputError) as raised:
        door.main([f"out={tmp_path / 'made'}"])
    assert "empty_text" in raised.value.ledger
    assert read_json(tmp_path / "made" / "audit.json")["refused"]
    assert str(tmp_path / "made" / "rejects.jsonl") in capsys.readouterr().out


def test_arguments_and_manifest_are_told_together(composed: Any, manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text() + "{\n")
    with pytest.raises(InputError) as raised:
        door.main([str(manifest)])
    assert [fault.where for fault in raised.value.faults] == [str(manifest), "out", f"{manifest}:10"]
    assert "data.manifest=" in raised.value.faults[0].remedy
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="this is a file"):
        door.main([f"out={tmp_path / 'file'}"])


def test_the_front_door_tells_a_list_to_exclude_that_is_missing(manifest: Path, tmp_path: Path) -> None:
    given = ["+recipe=demo", f"data.manifest={manifest}", f"clean.exclude={tmp_path}/none.jsonl"]
    assert [fault.where for fault in world_faults(plan_start(given))] == [f"clean.exclude = {tmp_path}/none.jsonl"]


@pytest.mark.slow
def test_as_a_process_it_imports_no_torch(manifest: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from voxtrain.manifest.__main__ import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'lightning', 'pytorch_lightning', 'voxcpm', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    arguments = [f"data.manifest={manifest}", f"out={tmp_path / 'made'}", f"data.cache_dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "made" / "audit.json")["rows_kept"] == 8


@pytest.mark.slow
def test_as_a_process_a_missing_manifest_is_exit_2_and_leaves_nothing(tmp_path: Path) -> None:
    arguments = [f"data.manifest={tmp_path / 'none.jsonl'}", f"out={tmp_path / 'made'}"]
    done = subprocess.run(
        [sys.executable, "-m", "voxtrain.manifest", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 2
    assert "there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()
