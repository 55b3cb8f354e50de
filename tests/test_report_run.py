"""report.html: what it says of a complete run, and that it copes with every run that is not."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_material as made

from voxtrain.durable import read_json, write_json
from voxtrain.report import charts
from voxtrain.report.evidence import read_evidence
from voxtrain.report.run import shown_folder, write_report
from voxtrain.report.words import span, verdict
from voxtrain.run_folder import DataFolder, RunFolder

VOID = {"meta", "link", "br", "hr", "img", "input", "col", "path", "use", "rect"}


class Outline(HTMLParser):
    """The text of a page and its links; fails where tags do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value or "" for key, value in attrs if key == "href" and tag == "a"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return made.fake_run(tmp_path / "outputs" / "demo" / "2026-05-04_10-11-12")


@pytest.fixture(autouse=True)
def charts_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is the slow part of a report, and has tests of its own."""
    monkeypatch.setattr(charts, "_svg", lambda *_, enough: "<svg></svg>" if enough else "")


def read(run: RunFolder) -> Outline:
    return Outline(write_report(run).read_text(encoding="utf-8"))


def test_a_complete_run_is_told_in_full(run: RunFolder) -> None:
    page = read(run)
    best = min(range(made.EVERY, made.STEPS + 1, made.EVERY), key=made.total)
    gain = made.total(0) - made.total(best)
    assert f"Ship step {best}: its held-out loss/total of {made.total(best):.4f} is the lowest of 6" in page.text
    assert f"That is {gain:.4f} ({gain / made.total(0):.1%}".replace("%", "") in page.text
    assert f"The last checkpoint, step 240, is {made.total(240) - made.total(best):.4f} above it." in page.text
    for told in (
        "1,920",
        "1 min 11 s",
        "1.93 GiB",
        "1.70 GiB",
        "of the whole process",
        "checkpoints/step_0000120",
        "finished",
    ):
        assert told in page.text
    for told in ("empty_text", "30.8 %", "please subscribe <b>now</b>", "The ledger balances.", "no group is in two"):
        assert told in page.text
    for told in ("optimizer.lr", "0.001", "2.11.0", "+recipe=demo", "validation has 2 groups"):
        assert told in page.text
    assert "from 0.312 to 1.75: step 120" in page.text
    assert "not there yet" not in page.text
    assert page.links == ["evaluation/listening/index.html"]


def test_every_check_of_completion_holds_and_the_report_does_not_blame_itself(run: RunFolder) -> None:
    html = write_report(run).read_text()
    assert html.count('<li class=""') >= 7
    assert '<li class="no"' not in html  # post_hoc.json says FAILED until the report, its last stage, has ended
    assert "ended with exit code 1" not in html


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("config.yaml", "settings"),
        ("environment.json", "description of the machine"),
        ("run.json", "run.json"),
        ("data", "ledger"),
        ("metrics.csv", "Training steps"),
        ("memory.json", "memory plan"),
        ("evaluation", "Held-out losses"),
    ],
)
@pytest.mark.parametrize("how", ["gone", "torn"])
def test_every_section_copes_with_its_file_missing_or_torn(run: RunFolder, name: str, absent: str, how: str) -> None:
    path = run.root / name
    files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    assert files
    for file in files:
        if how == "torn":
            file.write_bytes(file.read_bytes()[:1] + b"\x00\xff{:\n\t- [")
        else:
            file.unlink()
    if name in {"run.json", "config.yaml"}:
        text = read(run).text
        assert how == "gone" or f"{name} cannot be read" in text
    else:
        assert re.search(f"{absent}[^.]* not there yet", read(run).text)


def test_what_saving_took_of_training_is_told(run: RunFolder) -> None:
    told = "7 saves (0.21 GiB), 0.6 s each; training stood still for 0.05 s of it, 0.88 s in all."
    assert told in Outline(write_report(run).read_text()).text
    run.saves.write_text("")
    assert "stood still" not in Outline(write_report(run).read_text()).text


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    page = read(RunFolder(tmp_path / "run"))
    assert page.text.count("not there yet") >= 8
    assert "No checkpoint is judged yet." in page.text


@pytest.mark.slow
def test_values_of_an_unexpected_kind_do_not_stop_the_report(run: RunFolder) -> None:
    for path in (run.run, run.memory, run.selection, DataFolder(run.data).audit, DataFolder(run.data).split):
        before = read_json(path)
        write_json(path, dict.fromkeys(before))
        read(run)
        write_json(path, before)
        path.write_text("[1, 2]")
        assert f"{path.name} cannot be read (it holds no dict)" in read(run).text
        write_json(path, before)


def test_a_failed_run_says_why(run: RunFolder) -> None:
    shutil.rmtree(run.evaluation)
    evidence = {"last_logged_step": 240, "last_checkpoint": 200, "last_state": 200, "complete": False}
    why = "RuntimeError: <out of memory> & more"
    made.write_record(run, 240, [], status="failed", exit_code=1, message=why, evidence=evidence, skipped=[7, 9])
    html = write_report(run).read_text()
    text = Outline(html).text
    assert "Failed, exit code 1" in text
    assert why in text
    assert "<out of memory>" not in html
    assert "2 steps were skipped" in text
    assert "These should agree: last logged step: 240, last checkpoint: 200, last state: 200." in text
    assert "No checkpoint is judged yet." in text


def test_validation_that_was_not_wanted_is_not_missing(run: RunFolder) -> None:
    shutil.rmtree(run.evaluation)
    run.config.write_text(run.config.read_text().replace("after_training", "never"))
    assert "No checkpoint was judged, as was asked for" in read(run).text


def test_intervals_and_ties_are_shown_where_there_are_intervals(run: RunFolder) -> None:
    plain = read(run).text
    made.write_evaluation(run, range(0, 241, 40), 0.0, intervals=True)
    text = read(run).text
    low, high = made.total(120) - 0.02, made.total(120) + 0.015
    assert f"{low:.4f} to {high:.4f}" in text
    assert "This split cannot tell it from step 160." in text
    assert "12.5 %" in text
    assert "\N{MINUS SIGN}0.0100 to +0.0300" in text  # of the difference from the selected, paired
    for told in ("cannot be told from it", "P(best)", "cannot tell it"):
        assert told not in plain


def test_a_choice_that_does_not_beat_the_base_says_so(run: RunFolder) -> None:
    made.write_evaluation(run, range(0, 241, 40), 1.0)
    assert verdict(read_evidence(run))[1] == f"It does not beat the base model, which has {made.total(0):.4f}."


def test_a_failed_stage_after_training_is_a_warning(run: RunFolder) -> None:
    outcome = read_json(run.post_hoc)
    outcome["steps"][1]["exit_code"] = 1
    write_json(run.post_hoc, outcome)
    assert "after training, “listen” ended with exit code 1; see evaluation/post_hoc.log" in read(run).text


def test_a_ledger_that_does_not_balance_is_shouted(run: RunFolder) -> None:
    path = DataFolder(run.data).audit
    write_json(path, read_json(path) | {"rows_in": 121})
    assert "THE LEDGER DOES NOT BALANCE." in read(run).text


def test_the_folder_is_shown_as_one_types_it() -> None:
    assert shown_folder(Path("/home/me/voxtrain/outputs/demo/a")) == "outputs/demo/a"
    assert shown_folder(Path("/data/a")) == "/data/a"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.28, "0.3 s"), (71.25, "1 min 11 s"), (599.7, "10 min 00 s"), (3600, "1 h 00 min"), (3599, "59 min 59 s")],
)
def test_span(seconds: float, told: str) -> None:
    assert span(seconds) == told


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1])
def test_letters_can_be_read_in_light_and_dark(mode: int) -> None:
    template = Path(made.__file__).parents[1] / "voxtrain" / "report" / "templates" / "page.html.j2"
    light, dark = re.findall(r":root \{(.*?)\n\}", template.read_text(), re.DOTALL)
    found = colours((light, dark)[mode])
    pairs = [("ink", "paper"), ("ink", "surface"), ("muted", "paper"), ("muted", "surface"), ("accent", "surface")]
    pairs += [("surface", "accent"), ("mark", "surface"), ("ink", "mark-soft"), ("accent", "accent-soft")]
    pairs += [(name, f"{name}-soft") for name in ("mark", "warn", "bad", "good")]
    for letters, ground in pairs:
        high, low = sorted((luminance(found[letters]), luminance(found[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{letters} on {ground}"
