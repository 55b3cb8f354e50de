"""audit.html: what it says of a data folder, that it carries sound, and that nothing in the data can break it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import audit_material as made
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st
from page_material import Page, copied, read

from voxtrain.durable import read_json, write_json
from voxtrain.manifest.page.sound import LONGEST_S
from voxtrain.manifest.page.whole import page_html, write_page
from voxtrain.manifest.page.words import HARMFUL, harmless, share
from voxtrain.manifest.table import tell
from voxtrain.run_folder import DataFolder

PACKAGE = Path(__file__).resolve().parents[1] / "voxtrain" / "manifest"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return made.data_folder(tmp_path_factory.mktemp("run") / "data")


@pytest.fixture(scope="module")
def page(folder: DataFolder) -> Page:
    return read(folder)


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
