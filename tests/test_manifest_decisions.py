"""What is decided about a whole manifest: exclusions, groups, reports, repeated lines, transcripts; no cleaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from manifest_material import clean_rules, columns, grouped_split, option, prepared, write_lines

from voxtrain.durable import read_jsonl, write_whole
from voxtrain.fault import InputError
from voxtrain.manifest import workers
from voxtrain.manifest.clean import CleanRules
from voxtrain.manifest.prepare import read_split
from voxtrain.manifest.row import Row
from voxtrain.manifest.transcript import AsrCheck
from voxtrain.run_folder import SPLITS, DataFolder

Records = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes longer than all the rest; tests of it are elsewhere."""
    monkeypatch.setattr("voxtrain.manifest.prepare.write_page", lambda folder: write_whole(folder.page, "page"))


@pytest.fixture
def records(clips: list[tuple[Path, str, str]]) -> Records:
    """The eight clips of four parents."""
    return [
        {"id": path.stem, "audio": str(path), "text": text, "parent": parent, "speaker": f"s{number // 4}"}
        for number, (path, text, parent) in enumerate(clips)
    ]


def kept(folder: Path) -> list[Row]:
    rows = [row for split in SPLITS for row in read_split(DataFolder(folder), split)]
    return sorted(rows, key=lambda row: row.line)


def rules(**changed: Any) -> CleanRules:
    return clean_rules(max_reject_share=0.5, **changed)


def test_excluded_rows_are_rejected_and_counted(records: Records, tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "rows.jsonl", records)
    listed = write_lines(tmp_path / "exclude.jsonl", [{"id": "clip_3", "step": 1610}, {"id": "nobody"}, {"id": 17}])
    audit = prepared(manifest, tmp_path / "data", clean=rules(exclude=listed))
    assert (audit["excluded"], audit["rejects_by_rule"]["excluded"], audit["rows_kept"]) == (1, 1, 7)
    reject = read_jsonl(tmp_path / "data" / "rejects.jsonl")[0]
    assert (reject["id"], reject["rule"], reject["value"]) == ("clip_3", "excluded", "exclude.jsonl:1")
    assert any("2 of the ids" in warning for warning in audit["warnings"])
    listed.write_text('{"id": "clip_4"}\n')
    assert prepared(manifest, tmp_path / "data", clean=rules(exclude=listed))["fingerprint"] != audit["fingerprint"]
    assert "clip_3" in {row.id for row in kept(tmp_path / "data")}


def test_a_list_to_exclude_that_is_none_is_told_with_its_lines(records: Records, tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "rows.jsonl", records)
    listed = write_lines(tmp_path / "exclude.jsonl", ['{"id": "clip_3"}', "{", '{"name": "x"}'])
    with pytest.raises(InputError) as raised:
        prepared(manifest, tmp_path / "data", clean=rules(exclude=listed))
    assert [fault.where for fault in raised.value.faults] == [f"{listed}:2", f"{listed}:3"]
    with pytest.raises(InputError, match=r"clean\.exclude"):
        prepared(manifest, tmp_path / "data", clean=rules(exclude=tmp_path / "none.jsonl"))
    assert not (tmp_path / "data").exists()


def test_other_formats_and_other_names_of_columns_say_the_same(records: Records, tmp_path: Path) -> None:
    prepared(write_lines(tmp_path / "rows.jsonl", records), tmp_path / "one")
    named = [{"wav": r["audio"], "said": r["text"], "id": r["id"], "session": r["parent"]} for r in records]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(named), tmp_path / "rows.parquet")
    mapped = columns(audio="wav", text="said", parent="session")
    prepared(tmp_path / "rows.parquet", tmp_path / "other", columns=mapped)
    for split in SPLITS:
        one, other = (read_split(DataFolder(tmp_path / name), split) for name in ("one", "other"))
        assert [(r.id, r.audio_path, r.text, r.group, r.samples) for r in one] == [
            (r.id, r.audio_path, r.text, r.group, r.samples) for r in other
        ]
        assert one


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [
        ("row", {f"clip_{n}" for n in range(8)}),
        (r"clip_(\d)", set("01234567")),
        (["parent", "take"], {f"parent=parent_{n}" for n in range(4)}),
    ],
)
def test_groups_by_row_by_path_and_by_joined_columns(
    records: Records, tmp_path: Path, group_by: Any, groups: set[str]
) -> None:
    manifest = write_lines(tmp_path / "rows.jsonl", [r | {"take": f"t{n}"} for n, r in enumerate(records)])
    audit = prepared(manifest, tmp_path / "data", group_by=group_by)
    assert {row.group for row in kept(tmp_path / "data")} == groups
    assert audit["group_by"] == group_by
    assert any("data.group_by=row" in warning for warning in audit["warnings"]) == (group_by == "row")
    assert sum(size["groups"] for size in audit["splits"].values()) == len(groups)


@pytest.mark.parametrize(("group_by", "without"), [("parent", 2), (["parent", "speaker"], 1), (r"clip_([1-7])", 1)])
def test_rows_without_a_group_are_rejected_whatever_they_are_grouped_by(
    records: Records, tmp_path: Path, group_by: Any, without: int
) -> None:
    records[0]["parent"] = records[0]["speaker"] = records[1]["parent"] = None
    for number, record in enumerate(records[1:]):
        record["speaker"] = f"s{number}"
    manifest = write_lines(tmp_path / "rows.jsonl", records)
    split = grouped_split(validation_share=0.4, test_share=0.0)
    audit = prepared(manifest, tmp_path / "data", group_by=group_by, split=split)
    assert audit["rejects_by_rule"]["no_group"] == without == 8 - len(kept(tmp_path / "data"))


def test_digests_of_samples_stand_in_the_split_files_where_audio_was_decoded(records: Records, tmp_path: Path) -> None:
    records[0]["ref_audio"] = records[5]["audio"]
    manifest = write_lines(tmp_path / "rows.jsonl", records)
    prepared(manifest, tmp_path / "all")
    rows = kept(tmp_path / "all")
    assert all(len(row.samples or "") == 32 for row in rows)
    assert len({row.samples for row in rows}) == 8
    assert rows[0].ref_samples == rows[5].samples
    prepared(manifest, tmp_path / "headers", clean=rules(decode=False))
    assert {row.samples for row in kept(tmp_path / "headers")} == {None}
    assert [row.id for row in kept(tmp_path / "headers")] == [row.id for row in rows]


def test_what_is_reported_stays_and_is_listed(records: Records, tmp_path: Path) -> None:
    samples, rate_hz = soundfile.read(records[2]["audio"])
    path = tmp_path / "tail.wav"
    soundfile.write(path, np.concatenate([samples, np.zeros(2 * rate_hz)]), rate_hz)
    rows = [*records, records[2] | {"id": "tail", "audio": str(path)}]
    rows.append(records[3] | {"id": "cyrillic", "text": "Доброе утро."})
    audit = prepared(
        write_lines(tmp_path / "rows.jsonl", rows),
        tmp_path / "data",
        clean=rules(duplicates=False, rare_script_share=0.2),
    )
    assert (audit["reported"]["tail_silence"], audit["reported"]["rare_script"], audit["rows_kept"]) == (1, 1, 10)
    reported = read_jsonl(tmp_path / "data" / "reported.jsonl")
    tail, rare = (line for line in reported if line["rule"] in ("tail_silence", "rare_script"))
    assert (tail["id"], tail["rule"], tail["line"], tail["audio"]) == (
        "tail",
        "tail_silence",
        9,
        str(path),
    )
    assert tail["value"] == pytest.approx(2.0, abs=0.05)
    assert (rare["rule"], rare["value"], rare["threshold"]) == ("rare_script", "cyrillic: 10.00% of the rows", 0.2)
    assert {"tail", "cyrillic"} < {row.id for row in kept(tmp_path / "data")}


def test_the_most_repeated_lines_are_shown_and_none_is_dropped(records: Records, tmp_path: Path) -> None:
    for record in records[:6]:
        record["text"] = " Brought to you by nobody." if record["id"] == "clip_0" else "Brought to you by nobody."
    audit = prepared(write_lines(tmp_path / "rows.jsonl", records), tmp_path / "data")
    assert audit["repeated_lines"] == [{"text": "Brought to you by nobody.", "rows": 6}]
    assert audit["rows_kept"] == 8


def test_without_cleaning_it_is_said_aloud_and_a_null_text_is_empty(records: Records, tmp_path: Path) -> None:
    records[0]["text"], records[1]["text"], records[2]["audio"] = None, " ", "missing.wav"
    audit = prepared(
        write_lines(tmp_path / "rows.jsonl", records), tmp_path / "data", clean=CleanRules(**option("clean", "none"))
    )
    assert audit["warnings"][0].startswith("CLEANING IS OFF")
    assert [row.text for row in kept(tmp_path / "data")][:2] == ["", " "]
    assert {rule: rows for rule, rows in audit["rejects_by_rule"].items() if rows} == {"missing_audio": 1}


def test_a_recogniser_hears_what_is_kept_so_far(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listened: list[str] = []

    def recognise(path: str) -> str:
        listened.append(Path(path).stem)
        return "something else" if "clip_5" in path else f"Clip number {path[-5]} of eight!"

    monkeypatch.setattr(AsrCheck, "recogniser", lambda self: recognise)
    records[0]["text"] = ""
    check = {"model": "m", "device": "cpu", "compute_type": "int8", "language": "en", "max_word_error_rate": 0.5}
    manifest = write_lines(tmp_path / "rows.jsonl", [*records, {**records[1], "id": "again"}])
    audit = prepared(manifest, tmp_path / "data", clean=rules(asr=check))
    assert sorted(listened) == [f"clip_{n}" for n in range(1, 8)]
    rejects = {reject["id"]: reject["rule"] for reject in read_jsonl(tmp_path / "data" / "rejects.jsonl")}
    assert rejects == {"clip_0": "empty_text", "clip_1": "duplicate", "clip_5": "word_error_rate"}
    assert audit["rows_kept"] == 6


def test_rejects_say_all_that_a_page_needs(records: Records, tmp_path: Path) -> None:
    records[0] |= {"text": "x" * 500, "audio": "missing.wav"}
    prepared(write_lines(tmp_path / "rows.jsonl", records), tmp_path / "data")
    reject = read_jsonl(tmp_path / "data" / "rejects.jsonl")[0]
    assert reject == {
        "line": 1,
        "id": "clip_0",
        "rule": "missing_audio",
        "value": str(tmp_path / "missing.wav"),
        "threshold": None,
        "also": [],
        "audio": str(tmp_path / "missing.wav"),
        "text": "x" * 200,
        "seconds": None,
    }


@pytest.mark.slow
def test_workers_prepare_the_same_files(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        r | {"id": f"{r['id']}_{n}", "text": f"{r['text']} {n}", "parent": f"p{n}"}
        for n in range(4000)
        for r in records
    ]
    manifest, clean = write_lines(tmp_path / "rows.jsonl", lines), rules(decode=False)
    prepared(manifest, tmp_path / "one", clean=clean)
    monkeypatch.setattr(workers, "WORTH_S", -1.0)
    monkeypatch.setattr(workers, "FIRST_LOOK_S", 0.0)
    prepared(manifest, tmp_path / "other", clean=clean)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "other")]
    assert len(files[0]) == 8
    assert files[0] == files[1]
    assert json.loads(files[0]["audit.json"])["rows_in"] == 32_000
