"""Reading manifests: three formats, one meaning; what is wrong with a file is told with its lines, all at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_material import columns, row, write_lines

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.formats import LONGEST_LINE, chunks
from voxtrain.manifest.row import Row
from voxtrain.manifest.usable import HEAD_ROWS, check_head, rows_of

RECORDS = [
    {"audio": "clips/a.wav", "text": "cafe\u0301, he said", "parent": "one", "speaker": "ann"},
    {"audio": "clips/b.wav", "text": 'two, "quoted"', "parent": "two", "speaker": "ann"},
]


def read_manifest(path: Path, group_by: str, **names: str) -> list[Row]:
    return rows_of(path, columns(**names), group_by)


def faults(path: Path, group_by: str = "parent") -> list[str]:
    with pytest.raises(InputError) as raised:
        read_manifest(path, group_by)
    return [str(fault) for fault in raised.value.faults]


def read_or_faults(path: Path) -> tuple[list[Row], tuple[Fault, ...]]:
    try:
        return read_manifest(path, "parent"), ()
    except InputError as error:
        return [], error.faults


def as_csv(path: Path, encoding: str = "utf-8", newline: str = "\n") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        table = csv.DictWriter(file, list(RECORDS[0]), lineterminator=newline)
        table.writeheader()
        table.writerows(RECORDS)
    return path


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "rows.parquet")
    read = {
        "jsonl": read_manifest(write_lines(tmp_path / "rows.jsonl", RECORDS), "parent"),
        "csv": read_manifest(as_csv(tmp_path / "rows.csv"), "parent"),
        "excel": read_manifest(as_csv(tmp_path / "excel.csv", "utf-8-sig", "\r\n"), "parent"),
        "parquet": read_manifest(tmp_path / "rows.parquet", "parent"),
    }
    lines = {name: [r.line for r in rows] for name, rows in read.items()}
    assert lines == {"jsonl": [1, 2], "csv": [2, 3], "excel": [2, 3], "parquet": [1, 2]}
    meanings = {name: [{**r.to_record(), "line": 0} for r in rows] for name, rows in read.items()}
    assert meanings["jsonl"] == meanings["csv"] == meanings["excel"] == meanings["parquet"]


def test_text_is_nfc_and_relative_paths_start_at_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "rows.jsonl", RECORDS)
    monkeypatch.chdir(tmp_path.parent)
    first = read_manifest(Path(tmp_path.name) / "rows.jsonl", "speaker")[0]
    assert first.text == "caf\u00e9, he said"
    assert first.audio == tmp_path / "clips/a.wav"
    assert (first.group, first.parent, first.speaker) == ("ann", "one", "ann")


def test_byte_order_mark_crlf_and_blank_lines_are_let_pass(tmp_path: Path) -> None:
    text = "\ufeff" + "\r\n\r\n".join(json.dumps(record) for record in RECORDS) + "\r\n"
    (tmp_path / "rows.jsonl").write_bytes(text.encode())
    assert [r.line for r in read_manifest(tmp_path / "rows.jsonl", "parent")] == [1, 3]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    line = json.dumps({"audio": "a.wav", "text": "one\u2028two\x85three", "parent": "p"}, ensure_ascii=False)
    rows = read_manifest(write_lines(tmp_path / "rows.jsonl", [line, line.replace("a.wav", "b.wav")]), "parent")
    assert [r.text for r in rows] == ["one\u2028two\x85three"] * 2


def test_the_default_id_moves_with_the_folder_and_depends_on_path_and_text(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    records = [*RECORDS, {**RECORDS[0], "text": "else"}, {**RECORDS[0], "audio": "clips/c.wav"}]
    here = [r.id for r in read_manifest(write_lines(tmp_path / "here/rows.jsonl", records), "parent")]
    there = [r.id for r in read_manifest(write_lines(tmp_path / "there/other.jsonl", records), "parent")]
    assert here == there
    assert len(set(here)) == len(records)
    absolute = {**RECORDS[0], "audio": str(tmp_path / "here/clips/a.wav")}
    again = read_manifest(write_lines(tmp_path / "here/absolute.jsonl", [absolute]), "parent")
    assert again[0].id == here[0]


def test_numbers_as_labels_are_their_text(tmp_path: Path) -> None:
    records = [{"id": 7, "audio": "a.wav", "text": "x", "parent": 12.0, "speaker": 3}]
    read = read_manifest(write_lines(tmp_path / "rows.jsonl", records), "parent")[0]
    assert (read.id, read.group, read.speaker) == ("7", "12", "3")


def test_what_is_wrong_with_one_row_alone_is_no_fault_of_the_file(tmp_path: Path) -> None:
    odd = [
        {"audio": "a.wav", "text": None, "parent": "p"},
        {"audio": 17, "text": ["x"], "parent": "p"},
        {"audio": "", "text": "\ud800", "parent": {"no": 1}},
        {"parent": "p", "id": [1], "ref_audio": 3},
    ]
    rows = read_manifest(write_lines(tmp_path / "rows.jsonl", odd), "parent")
    assert [r.odd for r in rows] == [
        (("text", None),),
        (("text", '["x"]'), ("audio", "17")),
        (("text", '"\\ud800"'), ("audio", None), ("group", '{"no": 1}')),
        (("text", None), ("audio", None), ("ref_audio", "3"), ("id", "[1]")),
    ]


def test_broken_lines_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [RECORDS[0], '{"audio": ', RECORDS[1], "17", "[" * 100000])
    with path.open("ab") as file:
        file.write(b'{"audio": "\xff"}\n' + b'{"duration": ' + b"9" * 5000 + b"}\n")
    told = faults(path)
    assert [fault.split("\n")[0] for fault in told] == [f"{path}:{line}" for line in (2, 4, 5, 6, 7)]
    for fault, reason in zip(told, ("not JSON", "no object: int", "JSON", "not UTF-8: byte 0xff", "JSON"), strict=True):
        assert reason in fault


def test_many_broken_lines_are_counted_and_ten_shown(tmp_path: Path) -> None:
    told = faults(write_lines(tmp_path / "rows.jsonl", [RECORDS[0], *["{"] * 25]))
    assert len(told) == 11
    assert "15 more lines are broken: 12, 13," in told[10]


def test_broken_csv_lines_are_named_by_where_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'audio,text,parent\na.wav,"two\nlines",p\nb.wav,a, comma,p\nc.wav,\xff,p\nd.wav,fine,p\n')
    told = faults(path)
    assert [fault.split("\n")[0] for fault in told] == [f"{path}:{line}" for line in (4, 5)]
    assert "4 cells, the header 3" in told[0]
    assert "not UTF-8" in told[1]
    path.write_text("audio,text,text,parent\na.wav,x,y,p\n")
    assert "names a column twice" in faults(path)[0]
    path.write_text('audio,text,parent\na.wav,"never closed,p\n')
    assert "not CSV" in faults(path)[0]


def test_empty_csv_cells_are_null(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,audio,text,parent,ref_audio\n,a.wav,,p,\n,b.wav,x,,\n")
    rows = read_manifest(tmp_path / "rows.csv", "parent")
    assert [r.odd for r in rows] == [(("text", None),), (("group", None),)]
    assert [r.ref_audio for r in rows] == [None, None]


def test_absent_columns_broken_lines_and_repeated_ids_are_told_together(tmp_path: Path) -> None:
    records = [{"id": "x", "audio": "a.wav", "speaker": "s"}, {"id": "x", "audio": "b.wav", "speaker": "s"}, "{"]
    told = "\n".join(faults(write_lines(tmp_path / "rows.jsonl", records)))
    assert "rows.jsonl:3" in told
    assert "the column `text`" in told
    assert "data.group_by = parent" in told
    assert "the id 'x' stands on several lines: 1, 2" in told


def test_what_could_be_grouped_by_is_offered_with_counts(tmp_path: Path) -> None:
    records = [
        {"audio": f"{n}.wav", "text": "x", "speaker": f"s{n % 3}", "session": n // 2, "take": n, "set": "all"}
        for n in range(6)
    ]
    told = "\n".join(faults(write_lines(tmp_path / "rows.jsonl", records)))
    assert "of 6 rows: session (3 groups); speaker (3 groups)." in told


def test_identical_rows_without_ids_are_left_to_the_rules(tmp_path: Path) -> None:
    rows = read_manifest(write_lines(tmp_path / "rows.jsonl", [RECORDS[0], RECORDS[0]]), "parent")
    assert rows[0].id == rows[1].id
    named = {**RECORDS[1], "id": rows[0].id}
    assert "stands on several lines: 1, 2" in faults(write_lines(tmp_path / "rows.jsonl", [RECORDS[0], named]))[0]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    records = [{"wav": "a.wav", "said": "Good morning.", "text": "notes", "who": "ann", "session": "one"}]
    path = write_lines(tmp_path / "rows.jsonl", records)
    read = read_manifest(path, "session", audio="wav", text="said", speaker="who")[0]
    assert (read.audio, read.text, read.speaker, read.group) == (tmp_path / "a.wav", "Good morning.", "ann", "one")
    assert read_manifest(path, "speaker", audio="wav", text="said", speaker="who")[0].group == "ann"
    with pytest.raises(InputError) as raised:
        read_manifest(path, "session", audio="wav", text="transcript")
    assert "the column `transcript` (data.columns.text); there are: said, session, text, wav, who" in str(raised.value)


def test_several_columns_and_paths_group_rows(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"audio": "ann/1/a.wav", "text": "x", "parent": "p", "speaker": "s"}])
    assert rows_of(path, columns(), ["parent", "speaker"])[0].group == "p"
    assert rows_of(path, columns(), r"^(\w+)/")[0].group == "ann"
    assert "no regular expression" in faults(path, "[")[0]
    assert "the column `session`" in faults(path, "session")[0]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_however_it_is_cut_into_chunks_the_lines_are_the_same(tmp_path: Path, name: str) -> None:
    records = [
        {"audio": f"{n}.wav", "text": "one\ntwo" if n % 3 else "x" * (40 * n + 1), "parent": "p"} for n in range(200)
    ]
    path = tmp_path / name
    if path.suffix == ".jsonl":
        write_lines(path, [*records[:50], " ", *records[50:]])
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=70)
    else:
        with path.open("w", newline="") as file:
            csv.DictWriter(file, list(records[0])).writerows([dict(zip(records[0], records[0], strict=True)), *records])
    read = {rows: [chunk.lines() for chunk in chunks(path, rows)] for rows in (1, 7, 100_000)}
    assert len({len(parts) for parts in read.values()}) == 3
    one, *others = [[line for part in parts for line in part] for parts in read.values()]
    assert [record for _, record in one] == records
    assert others == [one, one]


def test_a_column_that_comes_late_is_found_and_the_head_alone_is_judged(tmp_path: Path) -> None:
    early = {"audio": "a.wav", "text": "x"}
    lines = [early] * HEAD_ROWS * 2 + [{**early, "parent": "p"}]
    path = write_lines(tmp_path / "rows.jsonl", [*lines, "{"])
    check_head(path, columns(), "parent")
    assert "not JSON" in faults(path)[0]
    with pytest.raises(InputError, match="the column `session`"):
        check_head(path, columns(), "session")


def test_a_line_too_long_to_hold_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [RECORDS[0]])
    with path.open("ab") as file:
        file.write(b'{"text": "' + b"x" * (LONGEST_LINE + 2**20) + b'"}\n' + b"{\n")
    assert [fault.split("\n")[0] for fault in faults(path)] == [f"{path}:2", f"{path}:3"]


def test_large_numbers_keep_their_digits(tmp_path: Path) -> None:
    line = '{"id": 123456789012345678901, "audio": "a.wav", "text": "x", "parent": 18446744073709551617}'
    read = read_manifest(write_lines(tmp_path / "rows.jsonl", [line]), "parent")[0]
    assert (read.id, read.group) == ("123456789012345678901", "18446744073709551617")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.jsonl", None, "no such file"),
        ("rows.jsonl", b"", "no rows"),
        ("rows.jsonl", b"\xef\xbb\xbf\r\n", "no rows"),
        ("rows.csv", b"audio,text,parent\n", "no rows"),
        ("rows.parquet", b"PAR1 but not quite", "not a Parquet file"),
        ("rows.xlsx", b"x", "told by its ending"),
    ],
)
def test_what_is_no_manifest_is_told(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert reason in faults(tmp_path / name)[0]


def test_a_parquet_row_that_is_not_unicode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"two, ", b"two\xff "))
    told = faults(path)
    assert len(told) == 1
    assert told[0].startswith(f"{path}:2\n    this row cannot be read")


def test_a_folder_is_no_manifest(tmp_path: Path) -> None:
    assert "this is a folder" in faults(tmp_path)[0]


def test_a_row_survives_its_record() -> None:
    known = {"samples": "0f" * 16, "ref_samples": "f0" * 16}
    whole = row(duration_s=1.25, speaker="ann", ref_audio=Path("/clips/ref.wav"), group="s1", **known)
    record = json.loads(json.dumps(whole.to_record()))
    assert (record["group"], record["parent"], record["samples"]) == ("s1", "one", "0f" * 16)
    assert Row.from_record(record) == whole
    assert (whole.audio, whole.ref_audio) == (Path("/clips/a.wav"), Path("/clips/ref.wav"))
    bare = row(parent=None, duration_s=2.0)
    assert Row.from_record(bare.to_record()) == bare
    assert {"parent", "ref_audio", "samples"}.isdisjoint(bare.to_record())


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["rows.jsonl", "rows.csv", "rows.parquet"]), st.integers(0, 400), st.integers(0, 20), st.binary()
)
def test_any_bytes_are_rows_or_a_clear_fault(tmp_path: Path, name: str, start: int, gone: int, more: bytes) -> None:
    """A good manifest with some of its bytes replaced."""
    whole = tmp_path / "whole" / name
    if not whole.exists():
        whole.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), whole.with_suffix(".parquet"))
        write_lines(whole.with_suffix(".jsonl"), RECORDS)
        as_csv(whole.with_suffix(".csv"))
    content = whole.read_bytes()
    start %= len(content)
    (tmp_path / name).write_bytes(content[:start] + more + content[start + gone :])
    rows, faults_found = read_or_faults(tmp_path / name)
    assert bool(rows) != bool(faults_found)
    assert all(name in fault.where or "data.group_by" in fault.where for fault in faults_found)
