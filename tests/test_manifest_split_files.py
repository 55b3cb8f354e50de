"""The files of a split: its certificate, and how it differs from an earlier split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from manifest_material import grouped_split, prepared, write_lines

from voxtrain.durable import read_json, write_json
from voxtrain.fault import InputError
from voxtrain.manifest.splitting.certificate import read_certificate
from voxtrain.run_folder import SPLITS, DataFolder


def manifest_of(folder: Path, clips: Any, **columns: Any) -> Path:
    """A manifest of the eight clips; columns: a function of the clip's number for each."""
    records = [
        {"id": f"row {n}", "audio": str(path), "text": text, "parent": parent, **{k: v(n) for k, v in columns.items()}}
        for n, (path, text, parent) in enumerate(clips)
    ]
    return write_lines(folder / "rows.jsonl", records)


def test_training_reads_a_sound_certificate_and_refuses_any_other(clips: Any, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    audit = prepared(manifest_of(tmp_path, clips), folder.root)
    record = read_certificate(folder)
    assert record["fingerprint"] == audit["fingerprint"]
    assert read_json(folder.split) == record

    def refused(why: str) -> None:
        with pytest.raises(InputError, match=why) as raised:
            read_certificate(folder)
        assert "prepare the rows again" in raised.value.faults[0].remedy
        write_json(folder.split, record)

    write_json(folder.split, record | {"overlaps": record["overlaps"] | {"train+test": ["tape 1"]}})
    refused("train and test share groups, such as 'tape 1'")
    write_json(folder.split, record | {"fingerprint": "another"})
    refused("another preparation than audit.json")
    write_json(folder.split, {key: value for key, value in record.items() if key != "overlaps"})
    refused("no leakage certificate")
    for broken in ("{", "[]", ""):
        folder.split.write_text(broken)
        refused("cannot be read|no object")
    folder.split.unlink()
    refused("nothing shows that training has not heard validation")
    rows = folder.rows("train").read_text()
    folder.rows("train").write_text(rows + rows.splitlines()[0] + "\n")
    count = record["splits"]["train"]["rows"]
    refused(f"it certifies {count} rows of train, and train.jsonl has {count + 1}")


def test_an_earlier_split_tells_every_group_that_moved_and_which_labels_were_joined(clips: Any, tmp_path: Path) -> None:
    group_by = ["speaker", "session"]
    manifest = manifest_of(tmp_path, clips, speaker=lambda n: f"p{n // 2}", session=lambda n: f"s{n // 2}")
    prepared(manifest, tmp_path / "first", group_by=group_by)
    before = {r["id"]: (s, r["group"]) for s in SPLITS for r in rows_of(tmp_path / "first", s)}
    assert {group for _, group in before.values()} == {f"speaker=p{n}" for n in range(4)}
    # the largest joined pair that lay in two splits
    one, other = next(
        (a, b) for a in range(4) for b in range(a) if before[f"row {2 * a}"][0] != before[f"row {2 * b}"][0]
    )
    joining = manifest_of(
        tmp_path, clips, speaker=lambda n: f"p{n // 2}", session=lambda n: f"s{other if n == 2 * one else n // 2}"
    )
    chosen = grouped_split(previous=str(tmp_path / "first"))
    audit = prepared(joining, tmp_path / "second", group_by=group_by, split=chosen)
    after = {r["id"]: (s, r["group"]) for s in SPLITS for r in rows_of(tmp_path / "second", s)}
    since = read_certificate(DataFolder(tmp_path / "second"))["since_previous"]
    assert since["rows_compared"] == 8
    assert {(move["group"], move["from"], move["to"], move["now"], move["rows"]) for move in since["moves"]} == {
        (*before[row][::-1], *after[row], 2) for row in before if before[row][0] != after[row][0]
    }
    assert since["moves"], "two groups of two splits were joined, so one of them moved"
    assert since["joined"] == [
        {"group": f"speaker=p{other}", "groups": 2, "of": [f"speaker=p{other}", f"speaker=p{one}"]}
    ]
    told = "\n".join(audit["warnings"] + read_json(tmp_path / "second" / "split.json")["warnings"])
    assert f"such as speaker=p{other}, which is made of speaker=p{other}, speaker=p{one}" in told
    assert "changed the split, such as speaker=p" in told


def test_groups_are_compared_by_name_where_no_row_is_the_same(clips: Any, tmp_path: Path) -> None:
    prepared(manifest_of(tmp_path, clips, id=lambda n: f"old {n}"), tmp_path / "first")
    before = {r["group"]: s for s in SPLITS for r in rows_of(tmp_path / "first", s)}
    moving = next(group for group, split in before.items() if split == "train")
    chosen = grouped_split(previous=str(tmp_path / "first"), test_groups=[moving])
    prepared(manifest_of(tmp_path, clips, id=lambda n: f"new {n}"), tmp_path / "second", split=chosen)
    since = read_certificate(DataFolder(tmp_path / "second"))["since_previous"]
    assert since["rows_compared"] == 0
    assert {"group": moving, "from": "train", "to": "test", "now": moving, "rows": 0} in since["moves"]


def test_what_is_no_earlier_split_is_told(clips: Any, tmp_path: Path) -> None:
    for content in (None, "{", '{"seed": 1}'):
        (tmp_path / "old").mkdir(exist_ok=True)
        if content is not None:
            (tmp_path / "old" / "split.json").write_text(content)
        with pytest.raises(InputError, match="no data folder with a split") as raised:
            prepared(
                manifest_of(tmp_path, clips), tmp_path / "new", split=grouped_split(previous=str(tmp_path / "old"))
            )
        assert raised.value.faults[0].where.startswith("split.previous = ")
        assert not (tmp_path / "new").exists()


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in DataFolder(folder).rows(split).read_text().splitlines()]
