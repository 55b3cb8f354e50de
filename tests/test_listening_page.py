"""The listening page in headless Chromium: it plays, nothing is cut off, and blind votes come out as they were cast."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import Page, browser, until
from test_validation_votes import judge

from voxtrain.durable import read_json, write_json
from voxtrain.fault import DONE
from voxtrain.listening.ceiling import AS_IT_IS, ROUND_TRIP, Recording
from voxtrain.listening.measure import measure
from voxtrain.listening.page import Listened, write_page
from voxtrain.listening.settings import ListeningSettings
from voxtrain.listening.summary import Pace, summaries
from voxtrain.listening.table import Sample, Scores, lines, wave_file, write_samples
from voxtrain.listening.waves import write_wave
from voxtrain.run_folder import RunFolder

pytestmark = pytest.mark.slow

STEPS, TEXTS, TAKES, RATE_HZ = (0, 10, 20), ("Good morning.", "<b>One</b> & two?", "A longer text."), 2, 16_000
ROOT = Path(__file__).resolve().parents[1]
WHO = "sitting.rounds[sitting.at].sides"


def voice(step: int, place: int, peak: float) -> np.ndarray:
    """Half a second of a tone of its own."""
    time_s = np.arange(RATE_HZ // 2) / RATE_HZ
    return (peak * np.sin(2 * np.pi * (200 + 7 * step + 50 * place) * time_s)).astype(np.float32)


def write_run(run: RunFolder) -> None:
    """Samples of three checkpoints, one of them broken, at very different levels, and the page."""
    settings = ListeningSettings.model_validate(
        {"texts": TEXTS, "seeds": TAKES, "max_seconds": 4, "inference_timesteps": 10, "cfg_value": 2, "device": "auto"}
        | {"reference": None, "ceiling": 1, "word_errors": None, "similarity": None}
    )
    order, samples = lines(settings), []
    for step in STEPS:
        for place, line in enumerate(order):
            broken = (step, place) == (20, 1)
            wave = voice(step, place, 0.02 if step == 10 else 0.7)
            found = None if broken else measure(wave, RATE_HZ, line.text)
            scores = Scores(0.25, 0.1, "good <moaning>", "a", 0.8, "b")
            one = Sample(step, line, f"{step} {place}", False, "no luck" if broken else "", found, scores)
            samples.append(one)
            if not broken:
                write_wave(wave_file(run, one), wave, RATE_HZ)
    recordings = [
        Recording("clip", "What was said.", kind, "x", measure(voice(1, 1, 0.5), RATE_HZ, "x"))
        for kind in (AS_IT_IS, ROUND_TRIP)
    ]
    for one in recordings:
        write_wave(one.wave_file(run), voice(1, 1, 0.5), RATE_HZ)
    write_samples(run, samples, order)
    write_json(run.selection, {"selected_step": 20, "runner_up": 10})
    pace = Pace(0.03, 0.05, 0.06)
    write_page(run, Listened("demo", samples, order, recordings, summaries(samples, pace), pace, ["nothing heard"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    found = RunFolder(tmp_path_factory.mktemp("run"))
    write_run(found)
    return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    folder = tmp_path_factory.mktemp("chromium")
    with browser(folder) as page:
        yield page, folder / "downloads"


def address(run: RunFolder, fragment: str = "") -> str:
    return run.listening_page.resolve().as_uri() + fragment


@pytest.mark.parametrize("fragment", ["", "#blind=10-20-7"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off(run: RunFolder, chromium: tuple[Page, Path], width: int, fragment: str) -> None:
    page, _ = chromium
    page.open(address(run, fragment), width)
    assert page.value("innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll("main *, .blind *")].filter(one => !one.closest(".sheet")
        && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""
    assert page.value(wide) == []
    texts = """[...document.querySelectorAll(".sheet th, .about, .step")].filter(one => one.scrollWidth >
        one.clientWidth + 1 && one.clientWidth && !one.querySelector(".again")).map(one => one.textContent)"""
    assert page.value(texts) == []


def test_heads_tell_scores_with_their_intervals_and_what_went_wrong(run: RunFolder) -> None:
    html = run.listening_page.read_text()
    heads = re.findall(r'<th scope="col".*?</th>', html)[: len(STEPS)]
    assert all("WER 25 % (25 to 25)" in head and "CER 10 %" in head and "similarity 0.80" in head for head in heads)
    assert ["failed 16.7 % (" in head for head in heads] == [False, False, True]
    assert "cut " not in "".join(heads)
    assert "a speech recogniser hears otherwise" in html
    assert "Not scored: nothing heard." in html


def test_every_sound_plays_and_all_are_equally_loud(run: RunFolder, chromium: tuple[Page, Path]) -> None:
    page, _ = chromium
    page.open(address(run))
    script = """(async () => {
      const context = new OfflineAudioContext(1, 1, 48000), found = [];
      for (const one of document.querySelectorAll("audio")) {
        const sound = await context.decodeAudioData(await (await fetch(one.src)).arrayBuffer());
        const wave = sound.getChannelData(0);
        found.push([sound.duration, Math.sqrt(wave.reduce((sum, x) => sum + x * x, 0) / wave.length)]);
      }
      return found;
    })()"""
    found = page.value(script)
    assert len(found) == len(STEPS) * len(TEXTS) * TAKES - 1 + 2
    assert all(0.5 <= seconds < 0.7 for seconds, _ in found)
    levels_db = 20 * np.log10([level for _, level in found])
    assert np.ptp(levels_db) < 2.5  # 30 dB apart as files; the ear's weighting of 200 to 690 Hz and MP3 padding remain
    files = [soundfile.read(path)[0] for path in run.listening.rglob("*.wav")]
    assert np.ptp([20 * np.log10(np.abs(wave).max()) for wave in files]) > 25


def test_arrows_go_from_sample_to_sample_and_space_plays(run: RunFolder, chromium: tuple[Page, Path]) -> None:
    page, _ = chromium
    page.open(address(run))
    playing = "[...document.querySelectorAll('audio')].findIndex(one => !one.paused)"
    here = "[current.dataset.row, current.dataset.column].join()"
    page.press("ArrowRight", "ArrowRight", "ArrowDown")
    assert page.value(here) == "2,2"  # the cell without a sound is stepped over
    page.value("document.querySelectorAll('audio').forEach(one => one.loop = true)")
    page.press(" ")
    page.wait_for(f"{playing} >= 0")
    assert page.value(f"document.querySelectorAll('audio')[{playing}] === soundOf(current)")
    page.press("ArrowLeft")
    page.wait_for(f"{playing} >= 0 && document.querySelectorAll('audio')[{playing}] === soundOf(current)")
    page.press(" ")
    assert page.value(playing) == -1


def test_blind_votes_by_keys_come_out_as_they_were_cast(run: RunFolder, chromium: tuple[Page, Path]) -> None:
    page, downloads = chromium
    page.open(address(run))
    page.press("b")
    assert page.value("[...document.querySelectorAll('.blind select')].map(one => Number(one.value))") == [20, 10]
    page.press("Enter")  # Begin has the focus
    rounds = page.value("sitting.rounds.length")
    assert rounds == len(TEXTS) * TAKES - 1  # one has no sound at step 20
    shown = page.value("document.querySelector('.blind').innerText")
    assert "Step" not in shown
    assert "10" not in shown.replace("of 10", "")
    page.value("document.querySelectorAll('audio').forEach(one => one.loop = true)")  # still heard when it is looked at
    cast: list[tuple[str, int, int | None]] = []
    for number in range(rounds):
        row, sides = page.value("sitting.rounds[sitting.at].row"), page.value(WHO)
        page.press("a")
        page.wait_for(f"!soundAt({row}, {sides[0]}).paused")
        page.press("b")
        page.wait_for(f"!soundAt({row}, {sides[1]}).paused && soundAt({row}, {sides[0]}).paused")
        line = page.value(f"known.lines[{row}]")
        key, chosen = [("1", sides[0]), ("2", sides[1]), ("0", None)][number % 3]
        if number == 1:
            page.press("1", "u")  # a slip, taken back
        page.press(key)
        cast.append((line["text_id"], line["take"], chosen))
    assert "Done" in page.value("document.querySelector('.blind').innerText")
    page.press("s")
    until(lambda: any(downloads.glob("votes_20_10_*.json")), "the votes are downloaded")
    (file,) = downloads.glob("votes_20_10_*.json")
    until(lambda: file.stat().st_size > 0, "the file is whole")
    votes = json.loads(file.read_text())
    assert [(one["text_id"], one["take"], one["preferred"]) for one in votes["votes"]] == cast
    page.press("Escape")
    assert page.value("getComputedStyle(document.querySelector('main')).display") == "block"
    the_door_takes(file, run, cast, downloads.parent / "taken")


def the_door_takes(file: Path, run: RunFolder, cast: list[tuple[str, int, int | None]], folder: Path) -> None:
    """Hand the votes in twice, and others that are none: the choice knows of them once, and the page marks it."""
    copy = RunFolder(Path(shutil.copytree(run.root, folder)))
    judge(copy, {0: 3.0, 10: 1.0, 20: 1.01})
    for _ in range(2):
        told = door(copy, str(file))
        assert told.returncode == DONE, told.stderr
        assert "5 blind votes between steps 10 and 20 are taken in." in told.stdout
    (found,) = read_json(copy.selection)["blind_votes"]
    votes = [step for _, _, step in cast]
    assert found["preferred"] == {str(step): votes.count(step) for step in (10, 20)}
    assert (found["undecided"], found["sittings"]) == (votes.count(None), 1)
    assert read_json(copy.selection)["selected_step"] == 10  # it was 20 when the page was made
    heads = re.findall(r'<th scope="col"( class="selected")?>Step (\d+)', copy.listening_page.read_text())
    assert [(step, bool(selected)) for selected, step in heads] == [("0", False), ("10", True), ("20", False)]
    before = copy.selection.read_bytes()
    wrong = json.loads(file.read_text())
    wrong["votes"][0]["preferred"] = 11
    file.write_text(json.dumps(wrong))
    told = door(copy, str(file))
    assert (told.returncode, copy.selection.read_bytes()) == (2, before)
    assert "a vote is about other checkpoints than the file" in told.stderr


def door(run: RunFolder, file: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "voxtrain.validation", str(run.root), "--votes", file]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_seed_settles_the_order_and_both_sides_are_used(run: RunFolder, chromium: tuple[Page, Path]) -> None:
    page, _ = chromium
    orders = []
    for seed in (7, 7, 8):
        page.open(address(run, f"#blind=0-10-{seed}"))
        orders.append(page.value("sitting.rounds.map(one => [one.row, ...one.sides])"))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(row for row, _, _ in orders[0]) == list(range(len(TEXTS) * TAKES))
    page.open(address(run))
    share = page.value(
        "(() => { const draw = random(3); return Array.from({length: 4000}, draw).filter(x => x < 0.5).length })()"
    )
    assert 1870 < share < 2130  # 2000 with a standard deviation of 32


def test_pictures(run: RunFolder, chromium: tuple[Page, Path], tmp_path: Path) -> None:
    page, _ = chromium
    for width in (390, 1280):
        page.open(address(run), width, 1000)
        page.picture(tmp_path / f"{width}.png")
        assert (tmp_path / f"{width}.png").stat().st_size > 10_000
    assert read_json(run.selection)["selected_step"] == 20
