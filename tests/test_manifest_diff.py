"""`--diff A B`: what it says of two audits whose difference is known, and of paths that lead to none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import audit_material as made
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.durable import read_json, read_jsonl, write_json, write_jsonl
from voxtrain.fault import InputError
from voxtrain.manifest.diff.audits import diff, diff_main
from voxtrain.manifest.diff.rows import COPY, _numbered
from voxtrain.manifest.page.words import share
from voxtrain.run_folder import SPLITS, DataFolder

EMPTY = made.REJECTS["empty_text"]
ALL = sum(rows for rows, _ in made.KEPT.values())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """An audit in a run folder."""
    return made.data_folder(tmp_path_factory.mktemp("run") / "data")


@pytest.fixture
def dirty(clean: DataFolder, tmp_path: Path) -> DataFolder:
    """The same rows audited without the rule for empty texts: they are kept, in train."""
    folder = DataFolder(tmp_path / "dirty")
    shutil.copytree(clean.root, folder.root)
    rejects = read_jsonl(folder.rejects)
    kept = [record for record in rejects if record["rule"] == "empty_text"]
    write_jsonl(folder.rejects, [record for record in rejects if record["rule"] != "empty_text"])
    rows = [{**record, "duration": record["seconds"], "group": "train_chapter_00"} for record in kept]
    write_jsonl(folder.rows("train"), read_jsonl(folder.rows("train")) + rows)
    audit = read_json(folder.audit)
    audit["rejects_by_rule"]["empty_text"] = 0
    audit["rows_kept"] += EMPTY
    audit["clean"]["empty_text"] = False
    audit["reject_share"] = 1 - audit["rows_kept"] / audit["rows_in"]
    write_json(folder.audit, audit)
    return folder


def edit(folder: DataFolder, split: str, change: Any) -> None:
    """Write the rows of a split again, each as `change` gives it back; None leaves it out."""
    write_jsonl(folder.rows(split), [new for row in read_jsonl(folder.rows(split)) if (new := change(row)) is not None])


def test_an_audit_does_not_differ_from_itself(clean: DataFolder) -> None:
    found = diff(clean.root.parent, clean.audit)  # a run folder, and an audit.json
    assert found["rows"]["kept_by_both"]["rows"] == ALL
    assert found["rows"]["went"]["rows"] == found["rows"]["came"]["rows"] == 0
    assert all(line["only_a"] == line["only_b"] == 0 for line in found["rules"])
    assert {line["rule"]: line["both"] for line in found["rules"]} == made.REJECTS
    assert (found["settings"], found["warnings"]) == ([], [])
    assert found["splits"]["groups"]["same_split"] == sum(groups for _, groups in made.KEPT.values())
    assert {median["shift"] for median in found["medians"].values()} == {0}
    assert len(found["medians"]) == 7


def test_dirty_against_clean(dirty: DataFolder, clean: DataFolder) -> None:
    found = diff(dirty.root, clean.root)
    went = found["rows"]["went"]
    assert (went["rows"], found["rows"]["came"]["rows"]) == (EMPTY, 0)
    assert list(went["rejected_by_rule"]) == ["empty_text"]
    assert went["rejected_by_rule"]["empty_text"]["rows"] == EMPTY
    assert went["seconds"] == pytest.approx(sum(0.02 + 0.1 * n for n in range(EMPTY)), abs=1e-6)  # microseconds
    assert [row["id"] for row in went["examples"]["empty_text"]] == [f"empty_text-{n:04d}" for n in range(3)]
    assert found["settings"] == [{"key": "clean.empty_text", "a": False, "b": True}]
    (empty,) = [line for line in found["rules"] if line["rule"] == "empty_text"]
    assert (empty["rows_a"], empty["rows_b"], empty["only_a"], empty["both"], empty["only_b"]) == (
        0,
        EMPTY,
        0,
        0,
        EMPTY,
    )


def test_what_it_does_to_the_contamination(dirty: DataFolder, clean: DataFolder) -> None:
    audit = read_json(clean.audit)
    audit["contamination"]["rows_per_step"] = 24
    write_json(dirty.root / "other.json", audit)
    found = diff(dirty.root, clean.root)["contamination"]
    rejects = sum(made.REJECTS.values())
    shares = found["shares"]
    assert shares["a"] == pytest.approx((rejects - EMPTY) / (ALL + rejects))
    assert shares["kept_by_a_rejected_by_b"] == pytest.approx(EMPTY / (ALL + EMPTY))
    assert shares["kept_by_b_rejected_by_a"] == 0
    (step,) = found["steps_touched"]
    assert step["rows_per_step"] == 8
    assert step["kept_by_a_rejected_by_b"] == pytest.approx(1 - (1 - EMPTY / (ALL + EMPTY)) ** 8)
    both = diff(dirty.root, dirty.root / "other.json")["contamination"]["steps_touched"]
    assert [step["rows_per_step"] for step in both] == [8, 24]


def test_rows_that_one_manifest_does_not_have(dirty: DataFolder, clean: DataFolder) -> None:
    edit(dirty, "train", lambda row: None if row["id"] == "train-0007" else row)
    found = diff(dirty.root, clean.root)["rows"]
    assert found["came"]["rows"] == found["came"]["not_in_the_manifest"]["rows"] == 1
    assert diff(clean.root, dirty.root)["rows"]["went"]["not_in_the_manifest"]["rows"] == 1


def test_held_out_rows_that_the_other_trains_on_are_leakage(clean: DataFolder, tmp_path: Path) -> None:
    """Group validation_chapter_01 of A lies in B's training."""
    other = DataFolder(tmp_path / "other")
    shutil.copytree(clean.root, other.root)
    moved = [row for row in read_jsonl(other.rows("validation")) if row["group"] == "validation_chapter_01"]
    assert moved
    edit(other, "validation", lambda row: None if row in moved else row)
    write_jsonl(other.rows("train"), read_jsonl(other.rows("train")) + moved)
    found = diff(clean.root, other.root)
    leak = found["splits"]["held_out_in_a_trained_on_in_b"]
    assert (leak["rows"], leak["groups"], leak["held_out_rows"]) == (len(moved), 1, 14)
    assert (leak["same_samples"], leak["group_names"]) == (len(moved), ["validation_chapter_01"])
    assert found["splits"]["held_out_in_b_trained_on_in_a"]["rows"] == 0
    assert found["splits"]["groups"]["moves"] == [
        {"group": "validation_chapter_01", "from": "validation", "to": "train"}
    ]
    (warning,) = found["warnings"]
    assert warning.startswith(f"leakage between experiments: B trains on {len(moved)} rows of 14 that A holds out")
    (back,) = diff(other.root, clean.root)["warnings"]
    assert back.startswith(f"leakage between experiments: A trains on {len(moved)} rows")


def test_the_same_samples_under_another_name_are_leakage_too(clean: DataFolder, tmp_path: Path) -> None:
    other = DataFolder(tmp_path / "other")
    shutil.copytree(clean.root, other.root)
    held = read_jsonl(other.rows("validation"))[0]
    edit(other, "train", lambda row: {**row, "samples": held["samples"]} if row["id"] == "train-0000" else row)
    found = diff(clean.root, other.root)
    leak = found["splits"]["held_out_in_a_trained_on_in_b"]
    assert (leak["rows"], leak["same_samples"], leak["groups"]) == (0, 1, 0)
    assert "B trains on 1 row of 14" in found["warnings"][0]


def test_other_groups_are_not_compared(clean: DataFolder, dirty: DataFolder) -> None:
    write_json(dirty.audit, {**read_json(dirty.audit), "group_by": "speaker"})
    found = diff(clean.root, dirty.root)
    assert found["splits"]["groups"] is None
    assert found["splits"]["held_out_in_a_trained_on_in_b"]["groups"] is None
    assert found["warnings"] == ["the audits group by different things, so that groups are not compared"]


def test_a_folder_without_a_split_is_compared_by_its_ledger(clean: DataFolder, dirty: DataFolder) -> None:
    for name in SPLITS:
        dirty.rows(name).unlink()
    found = diff(dirty.root, clean.root)
    assert found["rows"] is None
    assert found["contamination"]["shares"]["kept_by_a_rejected_by_b"] is None
    assert {line["rule"]: line["both"] for line in found["rules"]} == dict.fromkeys(made.REJECTS)
    assert "does not tell of every row" in found["warnings"][0]


def test_an_audit_that_says_next_to_nothing(clean: DataFolder, tmp_path: Path) -> None:
    write_json(tmp_path / "audit.json", {"rows_in": 3})
    found = diff(tmp_path, clean.root)
    assert (found["rows"], found["medians"], found["contamination"]["shares"]["a"]) == (None, {}, None)


def test_data_that_have_nothing_in_common_are_told(clean: DataFolder, dirty: DataFolder) -> None:
    for name in SPLITS:
        edit(dirty, name, lambda row: {**row, "id": f"other-{row['id']}"})
    write_jsonl(dirty.rejects, [])
    assert "no row of A has the id of a row of B" in diff(dirty.root, clean.root)["warnings"][-1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30), st.randoms(use_true_random=False))
def test_copies_of_a_row_meet_copies_and_kept_ones_meet_kept_ones(rows: list[tuple[int, int]], chance: Any) -> None:
    """Ids are told apart by their number among their like; which number a row gets does not depend on the order."""
    shuffled = [*rows]
    chance.shuffle(shuffled)

    def numbered(these: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
        ids = np.array([one for one, _ in these], dtype=np.uint64)
        what = np.array([other for _, other in these], dtype=np.int16)
        copies = (_numbered(ids, what) - ids).tolist()  # whole times COPY, modulo 2**64
        inverse = pow(int(COPY), -1, 2**64)
        return sorted((one, other, copy * inverse % 2**64) for (one, other), copy in zip(these, copies, strict=True))

    found = numbered(rows)
    assert found == numbered(shuffled)
    for one in {one for one, _ in rows}:
        assert [copy for same, _, copy in found if same == one] == list(range(sum(same == one for same, _ in rows)))


def test_the_table_tells_it_and_json_is_one_document(
    dirty: DataFolder, clean: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    held = read_jsonl(clean.rows("validation"))[0]
    edit(dirty, "train", lambda row: {**row, "samples": held["samples"]} if row["id"] == "train-0000" else row)
    assert diff_main([dirty.root, clean.root], as_json=False) == 0
    printed = capsys.readouterr().out
    for words in (
        "empty_text in B",
        "kept by A alone",
        "A as it is, judged by B's rules",
        share(EMPTY / (ALL + EMPTY)),
        share(1 - (1 - EMPTY / (ALL + EMPTY)) ** 8),
        "clean.empty_text",
        "leakage between experiments",
        "23 groups in the same split, 0 in another",
        "line 135",
    ):
        assert words in printed, words
    assert diff_main([dirty.root, clean.root], as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == diff(dirty.root, clean.root)


def test_names_of_the_data_cannot_colour_the_terminal(
    dirty: DataFolder, clean: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    wicked = "\x1b[31m[bold]\u202eevil"
    edit(dirty, "validation", lambda row: {**row, "group": wicked})
    kept = read_jsonl(dirty.rows("train"))
    edit(dirty, "train", lambda row: None if row == kept[0] else row)
    rejects = [*read_jsonl(dirty.rejects), kept[0]]
    write_jsonl(dirty.rejects, [{**row, "rule": wicked, "text": wicked} for row in rejects])
    edit(dirty, "test", lambda row: {**row, "group": wicked})
    diff_main([dirty.root, clean.root], as_json=False)
    diff_main([clean.root, dirty.root], as_json=False)
    printed = capsys.readouterr().out
    assert "\\x1b[31m[bold]\\u202eevil in A" in printed
    assert "\x1b" not in printed
    assert "\u202e" not in printed


@pytest.mark.parametrize(
    ("content", "what"), [(None, "it holds no audit.json"), ("[", "cannot be read"), ('{"a": 1}', "this is no audit")]
)
def test_bad_paths_are_told_together(tmp_path: Path, content: str | None, what: str) -> None:
    (tmp_path / "a").mkdir()
    if content is not None:
        (tmp_path / "a" / "audit.json").write_text(content)
    with pytest.raises(InputError) as raised:
        diff_main([tmp_path / "a", tmp_path / "none"], as_json=True)
    first, second = raised.value.faults
    assert what in first.what
    assert second.what == "there is no such file or folder"


@pytest.mark.parametrize("number", [0, 1, 3])
def test_two_audits_are_compared(clean: DataFolder, number: int) -> None:
    with pytest.raises(InputError, match=f"{number} path"):
        diff_main([clean.root] * number, as_json=False)
