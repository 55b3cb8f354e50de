"""audit.html: what it says of a data folder, that it carries sound, and that nothing in the data can break it."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import audit_material as made
import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from manifest_material import clean_rules

from voxtrain.durable import read_json, write_json, write_jsonl
from voxtrain.manifest.clean import WORD_ERROR_RATE
from voxtrain.manifest.decide import report_names
from voxtrain.manifest.distributions import EDGES, KEPT, PARTS, distributions
from voxtrain.manifest.page.advice import what_to_do
from voxtrain.manifest.page.commands import data_settings
from voxtrain.manifest.page.histogram import BARS, MEASURES, WIDTH, histogram
from voxtrain.manifest.page.ledger import calculator
from voxtrain.manifest.page.rows import ROWS_OF_A_RULE, with_players, worst_rows
from voxtrain.manifest.page.sound import LONGEST_S, NoPlayer, data_address
from voxtrain.manifest.page.split import certified
from voxtrain.manifest.page.whole import page_html, write_page
from voxtrain.manifest.page.words import HARMFUL, RULES, harmless, share
from voxtrain.manifest.table import tell
from voxtrain.run_folder import DataFolder
from voxtrain.settings import compose

PACKAGE = Path(__file__).resolve().parents[1] / "voxtrain" / "manifest"
VOID = {"meta", "br", "input", "path"}


class Page(HTMLParser):
    """What stands on a page; fails where tags do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def sounds(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "audio"]


def read(folder: DataFolder) -> Page:
    write_page(folder)
    return Page(folder.page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return made.data_folder(tmp_path_factory.mktemp("run") / "data")


@pytest.fixture(scope="module")
def page(folder: DataFolder) -> Page:
    return read(folder)


def copied(folder: DataFolder, root: Path, **changed: Any) -> DataFolder:
    """The same folder elsewhere, with `changed` keys of the audit."""
    shutil.copytree(folder.root, root)
    write_json(root / "audit.json", {**read_json(folder.audit), **changed})
    return DataFolder(root)


def test_it_tells_of_every_row(page: Page, folder: DataFolder) -> None:
    audit = read_json(folder.audit)
    told = f"{audit['rows_kept']} of {audit['rows_in']} rows are kept, 13 min 18 s of 14 min 07 s of audio."
    assert told in page.text
    ledger = page.text[page.text.index("Ledger Every") : page.text.index("Which rules fired")]
    for rule, rows in made.REJECTS.items():
        part = re.escape(share(rows / audit["rows_in"]).replace("\u202f", " "))
        assert re.search(rf"{rule} [^0-9]* {rows} {part} ", ledger), (rule, ledger)
    for words in (
        "Most rejects fall under empty_text: 31 rows",
        "validation has 2 groups: under 5",
        "grouped by parent",
        "Chapter end.",
        "tail_silence 5 of 9 rows",
        "upsampled 2 rows",
        "No group lies in two splits.",
        "Recordings, as the file names tell them, with slices in both train and validation: 1 (1 row of train",
        "test_chapter_00: from train to test",
        "clean.trim_tail_silence=0.3",
        "--diff",
    ):
        assert words in page.text, words


def test_the_page_needs_nothing_else(page: Page) -> None:
    """One file without a network: nothing is loaded from anywhere."""
    addresses = [value for _, attrs in page.tags for key in ("src", "href") if (value := attrs.get(key))]
    assert len(addresses) > 20
    assert [address[:40] for address in addresses if not address.startswith("data:audio/")] == []
    assert "@import" not in "".join(page.words)


def test_each_player_holds_the_first_seconds_of_its_clip(page: Page, folder: DataFolder) -> None:
    lengths_s = set()
    for address in page.sounds():
        sound = soundfile.info(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert (sound.samplerate, sound.channels) == (16000, 1)
        lengths_s.add(round(sound.duration, 2))
    assert lengths_s == {0.02, 0.6, 1.0, 2.0, 3.5, LONGEST_S}  # the tone of 12 s is cut
    assert page.text.count("no player: there is no such file") == 2
    assert "no player: Format not recognised" in page.text


def test_it_is_a_pure_function_of_the_files(folder: DataFolder, page: Page, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    read(folder)
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_a_folder_without_a_split_has_a_page_too(folder: DataFolder, tmp_path: Path) -> None:
    """As `voxtrain.manifest out=DIR` leaves it where it refuses: no split, no certificate."""
    other = copied(folder, tmp_path / "data", splits=None, refused=["37.0% of the rows are rejected: look"])
    for path in (other.split, *(other.rows(name) for name in ("train", "validation", "test"))):
        path.unlink()
    text = read(other).text
    assert "Training may not start from these rows" in text
    assert "37.0% of the rows are rejected" in text
    assert "No split could be made" in text
    assert "+recipe=preflight" not in text


def test_a_key_that_is_not_there_leaves_a_gap_and_no_error(folder: DataFolder, tmp_path: Path) -> None:
    audit = read_json(folder.audit)
    assert len(audit) > 20
    for lost in audit:
        left = {key: value for key, value in audit.items() if key != lost}
        (tmp_path / "audit.json").write_text(json.dumps(left))
        assert "Ledger" in page_html(DataFolder(tmp_path)), lost


def test_an_audit_that_says_next_to_nothing_and_broken_files_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "audit.json", {})
    (tmp_path / "split.json").write_text("{")
    (tmp_path / "rejects.jsonl").write_bytes(b'\xff\xfe\n{"rule": 17}\n[]\n{"rule": "too_short"}\n{"rule": "to')
    text = read(DataFolder(tmp_path)).text
    assert "The audit says nothing of its rows." in text
    assert "too_short 1 row" in text
    assert "no player: the row names no file" in text


def test_no_text_of_the_data_can_break_the_page(folder: DataFolder, tmp_path: Path) -> None:
    """Half of a surrogate pair cannot be written as UTF-8; marks of direction would turn the rest of the page round."""
    wicked = "</script><script>alert(1)</script>\"'>\ud800\x00\x1b[31m\u202e&amp;{{ 7 * 7 }}"
    other = copied(
        folder,
        tmp_path / "data",
        manifest=f"/tmp/{wicked}".replace("\ud800", ""),
        repeated_lines=[{"text": wicked.replace("\ud800", ""), "rows": 9}],
        warnings=[wicked.replace("\ud800", "")],
    )
    record = dict.fromkeys(("id", "rule", "value", "threshold", "audio", "text"), wicked)
    line = json.dumps({**record, "line": wicked, "also": [wicked], "seconds": wicked})  # escapes the lone surrogate
    other.rejects.write_text(line + "\n")
    other.reported.write_text(line + "\n")
    page = read(other)
    html = other.page.read_text(encoding="utf-8")
    assert HARMFUL.search(html) is None
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 1
    assert "alert(1)" in page.text  # as text
    assert "\\ud800\\x00\\x1b[31m\\u202e&amp;{{ 7 * 7 }}" in page.text


@given(st.text(st.characters(codec=None)))
@example("\ud800 \udfff \x00 \x1b \x9f \u202e \u2069")
def test_what_is_shown_can_always_be_written(text: str) -> None:
    shown = harmless(text)
    shown.encode()
    assert HARMFUL.search(shown) is None
    assert harmless(shown) == shown


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


def test_the_calculator_agrees_with_the_formula() -> None:
    """The published run's share: 5,229 of 17,055 rows, about 95 per cent of the steps of 8."""
    audit = {"rows_in": 17_055, "rows_kept": 11_826, "rejects_by_rule": {"empty_text": 5_229, "silent": 0}}
    found = calculator({**audit, "contamination": {"rows_per_step": 24}})
    assert found is not None
    assert found["batches"] == [1, 2, 4, 8, 16, 24, 32]
    (name, cells), (rule, _) = found["lines"]
    assert (name, rule) == ("all rejects", "empty_text")
    p = 5_229 / 17_055
    assert [cell.text for cell in cells] == [share(1 - (1 - p) ** n) for n in found["batches"]]
    assert cells[3].text == "94.7\u202f%"
    assert cells[-1].text == ">\u202f99.9\u202f%"  # not all of them
    assert calculator({"rows_in": 5, "rows_kept": 5}) is None


@pytest.mark.slow
def test_the_steps_to_take_can_be_typed(folder: DataFolder) -> None:
    """Every command and setting that the page offers is accepted by the settings check."""
    audit = read_json(folder.audit)
    rejects = {**audit["rejects_by_rule"], "too_long": 9, "clipped": 9}
    split = read_json(folder.split)
    split["near_text"]["train+validation"]["shared"] = 3
    steps = what_to_do({**audit, "rejects_by_rule": rejects}, split, folder.root)
    steps += what_to_do({**audit, "group_by": "row", "rejects_by_rule": {"too_short": 1}}, split, folder.root)
    assert len({step.finding for step in steps}) >= 14
    commands = [shlex.split(command) for command in dict.fromkeys(step.command for step in steps) if command]
    composed = 0
    for words in commands:
        if words[0] == "grep":
            assert Path(words[-1]).is_file()
            continue
        if "--diff" in words:
            continue
        overrides = words[3:] if words[0] == "python" else ["data.manifest=rows.jsonl", *words]
        compose([word for word in overrides if not word.startswith("out=")])
        composed += 1
    assert composed >= 7


@pytest.mark.parametrize("grouped", [["speaker", "two words"], r'"a"\\_([^/]+)\d+[.]$'], ids=str)
def test_commands_mean_what_the_audit_was_made_with(grouped: str | list[str]) -> None:
    """Through the shell and Hydra: quotation marks, blanks, backslashes and commas."""
    manifest = "/my data/a,b's=.jsonl"
    audit = {"manifest": manifest, "group_by": grouped, "reject_share": 0.3, "clean": {"max_reject_share": 0.4}}
    settings = compose(shlex.split(data_settings(audit)))
    assert str(settings.data.manifest) == manifest
    assert settings.data.group_by == (tuple(grouped) if isinstance(grouped, list) else grouped)
    assert settings.clean.max_reject_share == 0.4


@pytest.mark.parametrize(("share_found", "asked"), [(0.2, []), (0.2001, ["clean.max_reject_share=0.21"])])
def test_what_is_refused_can_be_allowed(folder: DataFolder, share_found: float, asked: list[str]) -> None:
    audit = {"rows_in": 9, "reject_share": share_found, "clean": {"max_reject_share": 0.2}, "refused": ["too many"]}
    assert [step.command for step in what_to_do(audit, {}, folder.root) if "max_reject" in step.command] == asked


def test_nothing_to_mend_leaves_one_step(folder: DataFolder) -> None:
    audit = {
        "rows_in": 9, "rows_kept": 9, "rejects_by_rule": {"empty_text": 0}, "manifest": "/x/rows.jsonl",
        "splits": {"validation": {"groups": 7}}, "clean": {"trim_tail_silence": None},
    }  # fmt: skip
    (step,) = what_to_do(audit, {}, folder.root)
    assert step.command == "python -m voxtrain +recipe=preflight data.manifest=/x/rows.jsonl"


def test_every_rule_has_words_and_stands_in_the_documentation_in_its_order() -> None:
    clean = clean_rules()
    rules, reports = [*clean.rule_names(), WORD_ERROR_RATE], [*report_names(clean)]
    assert set(RULES) == {*rules, *reports}
    told = (PACKAGE.parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    first, second = told.split("These are reported")
    cells = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in first.splitlines() if line.startswith("| `")]
    assert [rule for cell in cells for rule in cell if rule in rules] == rules[:-1]
    assert all(f"`{rule}`" in second for rule in [WORD_ERROR_RATE, *reports])


@pytest.mark.parametrize(
    ("part", "value", "kind", "words"),
    [
        ("overlaps", {"train+test": ["one", "two"]}, "no", "Groups in both train and test: 2"),
        ("overlaps", {"train+test": []}, "", "No group lies in two splits."),
        ("same_samples", None, "open", "Samples were not compared"),
        ("near_text", None, "open", "Texts were not compared"),
        (
            "near_text",
            {"score": 90, "train+test": {"shared": 2, "rows": {"train": 3, "test": 2}, "examples": []}},
            "open",
            "Texts that stand, or nearly stand, in both train and test: 2 (3 rows of train, 2 rows of test)",
        ),
        ("since_previous", {"folder": "old", "groups_moved": 0}, "", "No group changed its split since old."),
        ("since_previous", {"folder": "old", "groups_moved": 1, "moves": []}, "open", "1 group changed the split"),
    ],
)  # fmt: skip
def test_the_certificate_in_words(part: str, value: Any, kind: str, words: str) -> None:
    (check,) = certified({part: value})
    assert (check.kind, check.text.startswith(words)) == (kind, True), check.text


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.one_of(st.floats(-200, 500, width=32), st.just(float("nan")))), max_size=40
    ),
    st.sampled_from(sorted(EDGES)),
)
def test_every_known_row_is_in_one_bin_of_its_part(rows: list[tuple[int, float]], name: str) -> None:
    split = np.array([code for code, _ in rows], dtype=np.uint8)
    values = np.array([value for _, value in rows], dtype=np.float32)
    spread = distributions(split, {name: values})[name]
    first, last, bins = EDGES[name]
    assert (spread["edges"][0], spread["edges"][-1], len(spread["edges"])) == (first, last, bins + 1)
    members = {
        "rejected": split == 0,
        "train": split == 1,
        "validation": split == 2,
        "test": split == 3,
        KEPT: split > 0,
    }
    assert tuple(spread["parts"]) == PARTS
    for part, found in spread["parts"].items():
        known = values[members[part] & ~np.isnan(values)]
        assert found["rows"] == len(known) == sum(found["counts"])
        if len(known):
            # printed with six figures of a float32, which has seven
            assert found["quantiles"]["p50"] == pytest.approx(np.median(known.astype(np.float64)), rel=1e-5, abs=1e-5)
        else:
            assert found["quantiles"] is None


def test_what_lies_outside_the_edges_and_digital_silence_are_counted() -> None:
    values = np.array([-np.inf, -95.0, -20.1, 3.0, np.nan], dtype=np.float32)
    spread = distributions(np.ones(5, dtype=np.uint8), {"rms_dbfs": values})["rms_dbfs"]
    counts = spread["parts"]["train"]["counts"]
    assert (counts[0], counts[29], counts[-1], sum(counts)) == (2, 1, 1, 4)  # -20.1 lies in [-22, -20)
    json.dumps(spread, allow_nan=False)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_histogram_draws_what_was_counted(folder: DataFolder, measure: Any) -> None:
    spread = read_json(folder.audit)["distributions"][measure.name]
    drawn = histogram(measure, spread, [spread["edges"][5], 1e9])
    assert drawn is not None
    root = ET.fromstring(drawn.svg)
    strips = [part for part in ("train", "validation", "test", "rejected") if spread["parts"][part]["rows"]]
    bars = [path.get("d", "") for path in root.iter("path") if path.get("fill", "").startswith("var(--s")]
    assert [path.count("M") for path in bars] == [
        sum(count > 0 for count in spread["parts"][part]["counts"]) for part in strips
    ]
    assert len([path for path in root.iter("path") if path.get("stroke-dasharray")]) == len(strips)  # one bound inside
    for part, path in zip(strips, bars, strict=True):
        counts = [count for count in spread["parts"][part]["counts"] if count]
        heights = [float(height) for height in re.findall(r"v-([\d.]+)", path)]
        assert heights == [pytest.approx(max(1.0, BARS * count / max(counts)), abs=0.05) for count in counts]  # 0.1 px
    places = [float(x) for path in bars for x in re.findall(r"M([\d.]+) ", path)]
    assert min(places) >= 0
    assert max(places) < WIDTH
    assert all(f"{part}: " in root.get("aria-label", "") for part in strips)


def test_a_histogram_of_nothing_is_none() -> None:
    spread = distributions(np.zeros(2, dtype=np.uint8), {"peak": np.full(2, np.nan, dtype=np.float32)})["peak"]
    assert histogram(MEASURES[4], spread, []) is None


def test_the_short_form_in_a_terminal(folder: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    audit = read_json(folder.audit)
    tell({**audit, "manifest": "/tmp/\x1b[31mred[bold].jsonl"}, folder)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for words in ("rows in", "empty_text", "tail_silence", "Chapter end.", "Note: validation has", "rejects.jsonl"):
        assert words in printed
    assert "[bold]" in printed


def test_the_page_is_made_without_heavy_packages() -> None:
    """Pandas or matplotlib would take longer to import than a small audit takes."""
    files = [*PACKAGE.glob("page/*.py"), *PACKAGE.glob("diff/*.py"), PACKAGE / "distributions.py", PACKAGE / "table.py"]
    assert len(files) > 10
    imports = re.compile(r"^ *(?:from|import) (\w+)", re.MULTILINE)
    found = {name for path in files for name in imports.findall(path.read_text(encoding="utf-8"))}
    assert found - set(sys.stdlib_module_names) - {"voxtrain"} == {"jinja2", "numpy", "orjson", "rich", "soundfile"}


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>addEventListener("load", () => {
  const slider = document.querySelector("input[type=range]");
  slider.value = 2; slider.dispatchEvent(new Event("input"));
  const wide = [...document.querySelectorAll("main *")].filter(one => !one.closest(".wide")
    && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.tagName + "." + one.className);
  parent.postMessage(JSON.stringify({inside: innerWidth, page: document.documentElement.scrollWidth, wide,
    told: document.querySelector(".calculator b").textContent,
    hidden: document.querySelector(".calculator").hidden}), "*");
});</script>"""
FRAME = """<!doctype html><body style="margin:0">
<iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<script>addEventListener("message", event => document.body.append("FOUND" + event.data + "END"))</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_is_cut_off_and_the_slider_counts(folder: DataFolder, tmp_path: Path, width: int) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    write_page(folder)
    html = folder.page.read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(page="page.html", width=width))
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom"),
            f"file://{tmp_path / 'frame.html'}",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    match = re.search(r"FOUND(\{.*?\})END", done.stdout, re.DOTALL)
    assert match, done.stderr
    found = json.loads(match[1].replace("&gt;", ">"))
    audit = read_json(folder.audit)
    assert (found["inside"], found["page"], found["wide"]) == (width, width, [])
    assert (found["told"], found["hidden"]) == (share(1 - (1 - audit["reject_share"]) ** 2), False)
