"""The demo's speech: real sound, the published faults, the same bytes every time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import columns
from pydantic import ValidationError

from voxtrain.data.demo_rows import demo_rows, faults_beside
from voxtrain.data.demo_speech import DemoSource
from voxtrain.durable import read_json, read_jsonl
from voxtrain.fault import InputError
from voxtrain.manifest.prepare import prepare, read_split
from voxtrain.run_folder import SPLITS, DataFolder

RULES = {"empty_text": "empty_text", "boilerplate": "boilerplate", "short_audio": "too_short"}


def source(cache: Path, utterances: int = 120, parents: int = 12, **changed: Any) -> DemoSource:
    made = {"cache_dir": cache, "utterances": utterances, "parents": parents}
    fields = {"manifest": None, "group_by": "parent", "columns": columns(), **made}
    return DemoSource(**fields | changed)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's manifest at the size that conf says."""
    return source(tmp_path_factory.mktemp("cache")).manifest_path()


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_shares_of_faults_are_those_of_the_published_run(manifest: Path) -> None:
    labels = [record["label"] for record in read_jsonl(manifest.with_name("labels.jsonl"))]
    assert labels.count("clean") == 120
    half_a_row = 0.5 / len(labels) + 1e-4
    for label, share in (("empty_text", 0.3066), ("boilerplate", 0.0050), ("short_audio", 0.0257)):
        assert labels.count(label) / len(labels) == pytest.approx(share, abs=half_a_row)


@given(st.integers(1, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_fault_is_there_at_any_size(clean: int) -> None:
    labels = faults_beside(clean)
    assert set(labels) == set(RULES)
    total = clean + len(labels)
    assert abs(labels.count("empty_text") - 0.3066 * total) < 2


@pytest.mark.slow
def test_clean_clips_are_speech_of_a_few_seconds(manifest: Path) -> None:
    records, labels = read_jsonl(manifest), read_jsonl(manifest.with_name("labels.jsonl"))
    assert [record["id"] for record in records] == [label["id"] for label in labels]
    seen = 0
    for record, label in zip(records, labels, strict=True):
        samples, rate_hz = soundfile.read(manifest.parent / record["audio"], dtype="int16")
        assert rate_hz == 22_050
        assert samples.ndim == 1
        assert len(samples) / rate_hz == record["duration"]
        if label["label"] == "short_audio":
            assert 0.015 < record["duration"] < 0.1
            assert record["text"]
        else:
            seen += 1
            assert 0.9 < record["duration"] < 3.5
            assert np.abs(samples.astype(int)).max() > 3_000
    assert seen == 177


def test_parents_differ_in_voice_and_all_speak(manifest: Path) -> None:
    records = read_jsonl(manifest)
    speakers = {record["parent"]: record["speaker"] for record in records}
    assert len(speakers) == len(set(speakers.values())) == 12
    said = [row.said for row in demo_rows(120, 12)]
    assert len(set(said)) == len(said)
    per_parent = [sum(record["parent"] == parent for record in records) for parent in speakers]
    assert min(per_parent) >= 15


@pytest.mark.slow
def test_the_manifest_room_rejects_the_planted_faults_and_nothing_else(manifest: Path, tmp_path: Path) -> None:
    from voxtrain.settings import compose

    chosen = compose(["+recipe=demo"])
    folder = DataFolder(tmp_path)
    audit = prepare(
        manifest,
        chosen.data.columns,
        chosen.data.group_by,
        chosen.clean,
        chosen.split,
        chosen.seed,
        folder,
        tmp_path / "audio_facts.sqlite",
        rows_per_step=None,
        force_write=False,
    )
    truth = {record["id"]: record["label"] for record in read_jsonl(manifest.with_name("labels.jsonl"))}
    rejects = {reject["id"]: reject["rule"] for reject in read_jsonl(folder.rejects)}
    assert rejects == {name: RULES[label] for name, label in truth.items() if label != "clean"}
    assert audit["rows_kept"] == 120 == sum(len(read_split(folder, name)) for name in SPLITS)
    assert all(size["rows"] for size in read_json(folder.split)["splits"].values())


@pytest.mark.slow
def test_the_same_speech_byte_for_byte(tmp_path: Path) -> None:
    """Among four parents is a voice with noise in it, which eSpeak would seed from the clock's second."""
    one = source(tmp_path / "a", 8, 4).manifest_path()
    time.sleep(1.1)
    other = source(tmp_path / "b", 8, 4).manifest_path()
    assert one.parent.name == other.parent.name
    assert digests(one.parent) == digests(other.parent)


def test_made_once_and_made_again_where_a_part_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path, 3, 3).manifest_path()
    before = digests(path.parent)
    calls: list[Any] = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: (calls.append(args), real(*args, **kwargs))[1])
    assert source(tmp_path, 3, 3).manifest_path() == path
    assert calls == []
    next(path.parent.rglob("*.wav")).unlink()
    assert source(tmp_path, 3, 3).manifest_path() == path
    assert len(calls) == 1
    assert digests(path.parent) == before
    assert source(tmp_path, 4, 3).manifest_path() != path
    assert [entry.name for entry in tmp_path.iterdir() if "writing" in entry.name or "replaced" in entry.name] == []


def test_without_espeak_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("voxtrain.data.demo_speech.version", absent)
    with pytest.raises(InputError, match=r"pip install 'voxtrain\[demo\]'"):
        source(tmp_path).manifest_path()


def test_when_espeak_fails_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxtrain.data.demo_rows.ACCENTS", ("no-such-accent",))
    with pytest.raises(InputError, match="eSpeak NG gave error"):
        source(tmp_path, 3, 3).manifest_path()
    assert list(tmp_path.rglob("*.wav")) == []
    assert list(tmp_path.glob("*demo_speech_*/")) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"data\.cache_dir"):
        source(tmp_path / "cache", 3, 3).manifest_path()


def test_your_own_manifest_is_taken_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    own = source(tmp_path / "cache", manifest="~/rows.jsonl")
    assert own.manifest_path() == tmp_path / "rows.jsonl"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "changed", [{"parents": 0}, {"utterances": -1}, {"utterances": 11}, {"group_by": ""}, {"x": 1}]
)
def test_settings_that_cannot_work(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        source(tmp_path, **changed)


@pytest.mark.slow
def test_making_speech_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from voxtrain.data.demo_speech import DemoSource;"
        "from voxtrain.manifest.columns import Columns; columns = Columns(**dict.fromkeys(Columns.model_fields));"
        f"made = dict(cache_dir={str(tmp_path)!r}, utterances=3, parents=3);"
        "DemoSource(manifest=None, group_by='parent', columns=columns, **made)"
        ".manifest_path(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert list(tmp_path.rglob("*.wav"))
