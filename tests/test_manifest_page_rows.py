"""Which rows the page of an audit shows, and how their sound is put into it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import audit_material as made
import numpy as np
import pytest
import soundfile

from voxtrain.durable import write_jsonl
from voxtrain.manifest.page.rows import ROWS_OF_A_RULE, with_players, worst_rows
from voxtrain.manifest.page.sound import NoPlayer, data_address
from voxtrain.run_folder import DataFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return made.data_folder(tmp_path_factory.mktemp("run") / "data")


def finding(rule: str, number: int, **changed: Any) -> dict[str, Any]:
    return {"rule": rule, "line": number, "id": f"row-{number}", "value": None, "threshold": None, **changed}


def test_the_worst_rows_are_those_farthest_from_the_bound(tmp_path: Path) -> None:
    values = {1: 29.0, 2: 60.0, 3: 31.0, 4: 0.5, 5: 1.9, 6: 45.0, 7: 33.0, 8: 0.0}
    bounds = {number: 30.0 if value > 20 else 2.0 for number, value in values.items()}
    lines = [finding("chars_per_second", n, value=v, threshold=bounds[n]) for n, v in values.items()]
    write_jsonl(tmp_path / "rejects.jsonl", lines)
    (rule,) = worst_rows(tmp_path / "rejects.jsonl")
    assert (rule.rule, rule.rows, rule.head) == ("chars_per_second", 8, "5 of 8 rows")
    assert [row.line for row in rule.shown] == [
        "8",
        "4",
        "2",
        "6",
        "7",
    ]  # 0 is endlessly far by ratio; then 4x, 2x, ...
    assert rule.shown[1].found == "found 0.5 a second, bound 2 a second"


def test_findings_without_a_measure_are_shown_one_of_each_kind(tmp_path: Path) -> None:
    said = ["[Music]"] * 4 + ["Thanks."] + ["[Music]"] * 3 + ["Bye."]
    lines = [finding("boilerplate", n, value=text, text=text, threshold="x|y") for n, text in enumerate(said)]
    write_jsonl(tmp_path / "rejects.jsonl", [*lines, finding("empty_text", 99, value=" ", text=" ")])
    music, empty = worst_rows(tmp_path / "rejects.jsonl")
    assert [row.text for row in music.shown] == ["[Music]", "Thanks.", "Bye.", "[Music]", "[Music]"]
    assert music.shown[0].found == "matched by x|y"
    assert (empty.rows, empty.shown[0].text, empty.shown[0].found) == (1, "", "")


def test_many_findings_are_streamed(tmp_path: Path) -> None:
    """Whatever their number, five of a rule are held."""
    lines = [finding("too_short", n, value=0.1 - n / 1e6, threshold=0.1, text="x" * 100) for n in range(20_000)]
    write_jsonl(tmp_path / "rejects.jsonl", lines)
    (rule,) = worst_rows(tmp_path / "rejects.jsonl")
    assert (rule.rows, len(rule.shown)) == (20_000, ROWS_OF_A_RULE)
    assert [row.line for row in rule.shown] == [str(19_999 - n) for n in range(5)]


def test_the_page_holds_so_much_sound_and_no_more(folder: DataFolder) -> None:
    rules = worst_rows(folder.rejects)
    everything = sum(len(row.sound) for rule in with_players(rules) for row in rule.shown)
    played = with_players(rules, most=everything // 2)
    assert everything // 4 < sum(len(row.sound) for rule in played for row in rule.shown) <= everything // 2
    silent = [row for rule in played for row in rule.shown if row.silence == "the page holds no more sound"]
    assert silent
    heard = {rule.rule for rule in played if rule.shown[0].sound}
    assert heard >= {"empty_text", "too_short", "boilerplate"}, "the worst row of every rule comes first"


@pytest.mark.parametrize(
    ("name", "why"), [("gone.wav", "no such file"), (".", "no ordinary file"), ("text.wav", "Format not recognised")]
)
def test_why_a_clip_cannot_be_played(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(NoPlayer, match=why):
        data_address(str(tmp_path / name))


@pytest.mark.parametrize(
    ("rate_hz", "kind", "played_hz"),
    [(1, "flac", 1), (44_100, "mpeg", 44_100), (192_000, "mpeg", 48_000), (96_010, "flac", 96_010)],
)
def test_any_sample_rate_is_played_or_told(tmp_path: Path, rate_hz: int, kind: str, played_hz: int) -> None:
    """NaN and infinity in a float file are no reason to fail either."""
    wave = np.array([np.nan, np.inf, -np.inf, 0.5] * 500, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", wave, rate_hz, subtype="FLOAT")
    head, _, content = data_address(str(tmp_path / "a.wav")).partition(",")
    assert head == f"data:audio/{kind};base64"
    assert soundfile.info(io.BytesIO(base64.b64decode(content))).samplerate == played_hz


def test_a_rate_that_nothing_compresses(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100, dtype=np.float32), 1_000_003)
    with pytest.raises(NoPlayer, match="1,000,003 Hz cannot be compressed"):
        data_address(str(tmp_path / "a.wav"))
