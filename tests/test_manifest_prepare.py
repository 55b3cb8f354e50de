"""From a manifest to the data/ folder: what is written, when nothing is, and when it is kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_material import clean_rules, grouped_split, prepared, write_lines, write_tone

from voxtrain.durable import read_json, read_jsonl, write_whole
from voxtrain.fault import InputError
from voxtrain.manifest.prepare import read_split
from voxtrain.run_folder import SPLITS, DataFolder

UNSPLIT = {"audit.html", "audit.json", "rejects.jsonl", "reported.jsonl"}
WHOLE = {*UNSPLIT, "split.json", *(f"{split}.jsonl" for split in SPLITS)}
PLANTED = {"empty_text": "empty_text", "boilerplate": "boilerplate", "short_audio": "too_short"}


@pytest.fixture(autouse=True)
def no_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes longer than all the rest; tests of it are elsewhere."""
    if "shared" not in request.fixturenames:
        monkeypatch.setattr("voxtrain.manifest.prepare.write_page", lambda folder: write_whole(folder.page, "page"))


def run(manifest: Path, out: Path, force_write: bool = False, group_by: Any = "parent", **clean: Any) -> dict[str, Any]:
    rules = clean_rules(**{"max_reject_share": 0.5, **clean})
    return prepared(manifest, out, group_by=group_by, clean=rules, force_write=force_write)


def refused(manifest: Path, out: Path, force_write: bool = False, **clean: Any) -> InputError:
    with pytest.raises(InputError) as raised:
        run(manifest, out, force_write, **clean)
    return raised.value


@pytest.fixture
def manifest(clips: list[tuple[Path, str, str]], tmp_path: Path) -> Path:
    """The eight clips of four parents, and four rows with a fault."""
    records: list[dict[str, Any]] = [
        {"audio": str(path), "text": text, "parent": parent} for path, text, parent in clips
    ]
    records += [
        {"audio": "missing.wav", "text": "There is no file.", "parent": "parent_0"},
        {"audio": str(clips[0][0]), "text": " ", "parent": "parent_0"},
        {"audio": str(write_tone(tmp_path / "short.wav", 0.05)), "text": "Too short.", "parent": "parent_0"},
        {**records[0]},
    ]
    return write_lines(tmp_path / "rows.jsonl", records)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}


def test_everything_is_written_and_fits_together(manifest: Path, tmp_path: Path) -> None:
    audit = run(manifest, tmp_path / "data")
    folder = DataFolder(tmp_path / "data")
    assert set(files(folder.root)) == WHOLE
    assert read_json(folder.audit) == audit
    assert (audit["rows_in"], audit["rows_kept"], audit["refused"]) == (12, 8, [])
    rejects = read_jsonl(folder.rejects)
    assert [(r["line"], r["rule"]) for r in rejects] == [
        (9, "missing_audio"),
        (10, "empty_text"),
        (11, "too_short"),
        (12, "duplicate"),
    ]
    assert (rejects[2]["value"], rejects[2]["threshold"]) == (0.05, 0.1)
    split = read_json(folder.split)
    assert split["fingerprint"] == audit["fingerprint"]
    parts = {name: read_split(folder, name) for name in SPLITS}
    for name, rows in parts.items():
        assert rows
        assert audit["splits"][name]["rows"] == len(rows) == split["splits"][name]["rows"]
        assert split["splits"][name]["group_names"] == sorted({row.group for row in rows})
        assert all(row.audio.is_absolute() and row.duration_s and not row.odd for row in rows)
        assert all(record["parent"] == record["group"] for record in read_jsonl(folder.rows(name)))
    assert sum(map(len, parts.values())) == 8
    assert max(Counter(g for rows in parts.values() for g in {row.group for row in rows}).values()) == 1


def test_a_group_column_stands_in_the_records_under_its_own_name(clips: Any, tmp_path: Path) -> None:
    records = [{"audio": str(path), "text": text, "session": parent} for path, text, parent in clips]
    run(write_lines(tmp_path / "rows.jsonl", records), tmp_path / "data", group_by="session")
    written = [record for name in SPLITS for record in read_jsonl(DataFolder(tmp_path / "data").rows(name))]
    assert {record["session"] for record in written} == {parent for _, _, parent in clips}
    assert all("parent" not in record for record in written)


def test_the_same_preparation_is_kept_and_another_replaces_it(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    first = run(manifest, out)
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(manifest, out) == first
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == stamps
    assert run(manifest, out, min_seconds=0.01)["rejects_by_rule"]["too_short"] == 0
    assert run(manifest, out) == first
    manifest.write_text(manifest.read_text() + "\n")
    assert run(manifest, out)["fingerprint"] != first["fingerprint"]


def test_an_incomplete_or_damaged_preparation_is_made_again(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(manifest, out)
    whole = files(out)
    for name in whole:
        (out / name).unlink()
        run(manifest, out)
        assert files(out) == whole
    (out / "audit.json").write_text('{"finger')
    run(manifest, out)
    assert files(out) == whole


def test_what_was_cut_off_in_the_middle_is_not_mistaken_for_the_older_preparation(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data"
    first = run(manifest, out)
    whole = files(out)

    def full_disk(path: Path, value: Any) -> None:
        raise OSError(f"no space left for {path.name}")

    with monkeypatch.context() as patch:
        patch.setattr("voxtrain.manifest.prepare.write_json", full_disk)
        with pytest.raises(InputError, match=r"no space left for split\.json"):
            run(manifest, out, min_seconds=0.01)
    assert files(out) != whole
    assert run(manifest, out) == first
    assert files(out) == whole


def test_too_many_rejects_stop_the_run_and_write_nothing(manifest: Path, tmp_path: Path) -> None:
    error = refused(manifest, tmp_path / "data", max_reject_share=0.33)
    assert not (tmp_path / "data").exists()
    assert str(error.faults[0]).startswith("clean.max_reject_share = 0.33\n    33.3% of the rows")
    assert "clean.max_reject_share=0.34" in error.faults[0].remedy
    assert "missing_audio" in error.ledger
    assert run(manifest, tmp_path / "data", max_reject_share=0.34)["rows_kept"] == 8


def test_the_door_writes_the_audit_all_the_same_and_it_is_not_mistaken_for_a_good_one(
    manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    for _ in range(2):
        refused(manifest, out, force_write=True, max_reject_share=0.1)
        assert set(files(out)) == WHOLE
        assert "33.3% of the rows are rejected" in read_json(out / "audit.json")["refused"][0]


def test_nothing_left_shows_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_text("no sound")
    records = [
        {"audio": "broken.wav", "text": "Good morning.", "parent": "a"},
        {"audio": "missing.wav", "text": "Good morning.", "parent": "b"},
        {"audio": "missing.wav", "text": "", "parent": "c"},
    ]
    manifest = write_lines(tmp_path / "rows.jsonl", records)
    out = tmp_path / "data"
    error = refused(manifest, out, max_reject_share=1.0)
    assert len(error.faults) == 1
    assert "none of its 3 rows" in error.faults[0].what
    assert [line.split()[0] for line in error.ledger.splitlines()[3:7]] == [
        "empty_text",
        "missing_audio",
        "unreadable_audio",
        "kept",
    ]
    assert not out.exists()
    refused(manifest, out, force_write=True, max_reject_share=1.0)
    assert set(files(out)) == UNSPLIT


def test_too_few_groups_say_how_many_there_are_and_what_to_do(clips: Any, tmp_path: Path) -> None:
    records = [{"audio": str(path), "text": text, "parent": "only"} for path, text, _ in clips]
    one = write_lines(tmp_path / "one.jsonl", records)
    error = refused(one, tmp_path / "data")
    assert error.faults[0].where == "data.group_by = parent"
    assert "1 group (only); test, validation, train need 3" in error.faults[0].what
    assert "split.test_share=0" not in error.faults[0].remedy
    records[0]["parent"] = "other"
    two = write_lines(tmp_path / "two.jsonl", records)
    assert "split.test_share=0" in refused(two, tmp_path / "data").faults[0].remedy
    no_test = grouped_split(test_share=0.0)
    prepared(two, tmp_path / "data", split=no_test)
    assert read_split(DataFolder(tmp_path / "data"), "test") == []
    with pytest.raises(InputError, match="1 group"):
        prepared(one, tmp_path / "data", split=no_test)


def test_files_of_an_older_split_do_not_stay_beside_a_newer_audit(manifest: Path, clips: Any, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(manifest, out)
    records = [{"audio": str(path), "text": text, "parent": "only"} for path, text, _ in clips]
    refused(write_lines(tmp_path / "one.jsonl", records), out, force_write=True)
    assert set(files(out)) == UNSPLIT


def test_a_refusal_leaves_a_standing_preparation_alone(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(manifest, out)
    before = files(out)
    refused(manifest, out, max_reject_share=0.1)
    assert files(out) == before


def test_two_refusals_are_told_together(clips: Any, tmp_path: Path) -> None:
    records = [
        {"audio": str(path), "text": "" if n else text, "parent": "p"} for n, (path, text, _) in enumerate(clips)
    ]
    error = refused(write_lines(tmp_path / "rows.jsonl", records), tmp_path / "data")
    assert [fault.where for fault in error.faults] == ["clean.max_reject_share = 0.5", "data.group_by = parent"]


odd_values = st.sampled_from(
    [
        None,
        "",
        " ",
        "Good morning.",
        "x" * 5000,
        17,
        -1.5,
        float("nan"),
        True,
        [],
        {},
        "\ud800",
        "\0",
        "../../etc",
        "ok.wav",
    ]
)
odd_rows = st.lists(
    st.dictionaries(st.sampled_from(["audio", "text", "parent", "duration", "ref_audio", "speaker"]), odd_values),
    max_size=8,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd_rows)
def test_any_rows_end_in_a_ledger_that_balances(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Three good rows and any others: exit 2 and a traceback are for other things than odd rows."""
    for place, name in enumerate(["a.wav", "b.wav", "ok.wav"]):
        write_tone(tmp_path / name, 0.2 + 0.01 * place)
    good = [{"audio": f"{name}.wav", "text": f"Hi {name}.", "parent": name} for name in ("a", "b", "ok")]
    manifest = write_lines(tmp_path / "rows.jsonl", [*good, *rows])
    audit = run(manifest, tmp_path / "data", max_reject_share=1.0)
    assert audit["rows_in"] == 3 + len(rows) == audit["rows_kept"] + sum(audit["rejects_by_rule"].values())
    folder = DataFolder(tmp_path / "data")
    assert len(read_jsonl(folder.rejects)) == audit["rows_in"] - audit["rows_kept"]
    assert sum(len(read_split(folder, name)) for name in SPLITS) == audit["rows_kept"]


def test_the_order_of_the_manifest_changes_no_split_and_no_reject(manifest: Path, tmp_path: Path) -> None:
    lines = manifest.read_text().splitlines()
    back = write_lines(tmp_path / "back.jsonl", lines[::-1])

    def decisions(source: Path, out: Path) -> tuple[Any, ...]:
        run(source, out)
        folder = DataFolder(out)
        rejects = sorted((r["id"], r["rule"]) for r in read_jsonl(folder.rejects))
        return rejects, *(sorted(row.id for row in read_split(folder, name)) for name in SPLITS)

    assert decisions(manifest, tmp_path / "one") == decisions(back, tmp_path / "other")


@pytest.mark.slow
def test_real_speech_with_planted_faults(shared: Path, tmp_path: Path) -> None:
    speech = shared / "speech"
    audit = run(speech / "manifest_dirty.jsonl", tmp_path / "data")
    truth = [json.loads(line) for line in (speech / "manifest_dirty.labels.jsonl").read_text().splitlines()]
    planted = {one["id"]: PLANTED[one["label"]] for one in truth if one["label"] != "clean"}
    assert len(planted) == 62
    found = {reject["id"]: reject["rule"] for reject in read_jsonl(DataFolder(tmp_path / "data").rejects)}
    assert found == planted
    assert (audit["rows_in"], audit["rows_kept"]) == (181, 119)
    assert audit["contamination"]["steps_touched"] == pytest.approx(1 - (119 / 181) ** 8)


@pytest.mark.slow
def test_real_speech_without_faults(shared: Path, tmp_path: Path) -> None:
    audit = run(shared / "speech" / "manifest.jsonl", tmp_path / "data", max_reject_share=0.0)
    assert audit["rows_kept"] == 176
    # the table of the data's README; its sum is of lengths rounded to four digits
    assert audit["seconds_kept"] == pytest.approx(1241.5, abs=0.05)
