"""Weights & Biases gets what metrics.csv holds; a missing account is told before anything starts; tips are silenced."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from voxtrain.durable import write_json, write_table
from voxtrain.fault import InputError, RunFailed
from voxtrain.metrics.loggers import CsvOnly, WandbSettings
from voxtrain.run_folder import RunFolder

OFFLINE = WandbSettings(project="p", entity=None, mode="offline")
ONLINE = WandbSettings(project="p", entity=None, mode="online")


class FakeError(Exception):
    pass


class FakeWandb(SimpleNamespace):
    """Records what wandb would be told."""

    def __init__(self, fails: bool = False, account: bool = True) -> None:
        super().__init__(errors=SimpleNamespace(Error=FakeError))
        self.pages: list[SimpleNamespace] = []
        self.fails, self.account = fails, account

    def Settings(self, **values: Any) -> dict[str, Any]:  # noqa: N802 - wandb's name
        return values

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        assert not verify
        return self.account

    def init(self, **given: Any) -> SimpleNamespace:
        if self.fails:
            raise FakeError("no route to host")
        page = SimpleNamespace(given=given, logged=[], axes={}, exit_code=None)
        page.define_metric = lambda name, step_metric=None: page.axes.update({name: step_metric})
        page.log = page.logged.append
        page.finish = lambda exit_code: setattr(page, "exit_code", exit_code)
        self.pages.append(page)
        return page


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    find = importlib.util.find_spec  # torch, which may be imported only now, looks for others by it
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: fake if name == "wandb" else find(name, *of))
    return fake


def metrics(run: RunFolder, steps: int) -> None:
    rows = [{"step": n, "train/loss/diff": "" if n == 2 else 1 / n, "train/rows": 8 * n} for n in range(1, steps + 1)]
    write_table(run.metrics, rows)


def begin(settings: WandbSettings, run: RunFolder) -> Any:
    log = settings.callback(run, {"seed": 1}, "demo")
    log.on_train_start(None, None)  # type: ignore[arg-type]
    return log


def test_each_row_is_sent_once_under_train_step(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunFolder(tmp_path)
    log = begin(OFFLINE, run)
    for steps in (1, 2, 2, 3):
        metrics(run, steps)
        log.on_train_batch_end(None, None, None, None, 0)
    log.teardown(None, None, "fit")
    (page,) = wandb.pages
    assert [row["train/step"] for row in page.logged] == [1, 2, 3]
    assert page.logged[0] == {"train/step": 1, "train/loss/diff": 1.0, "train/rows": 8}
    assert "train/loss/diff" not in page.logged[1]  # a skipped step has no loss
    assert page.axes["train/*"] == "train/rows"  # sweeps compare at equal rows, however many make a step
    assert page.axes["val/*"] == "val/rows"
    assert {"train/rows", "val/rows"} <= set(page.axes)
    assert (page.exit_code, page.given["config"], page.given["dir"]) == (0, {"seed": 1}, tmp_path)


def test_the_receipt_of_memory_is_sent_at_the_end(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunFolder(tmp_path)
    log = begin(OFFLINE, run)
    classes = {"peak_gib": 2.5, "classes": {"weights": 1.0}}
    phases = {"backward": {"predicted": 2.0, "measured": 2.5, "error": -0.2}, "load": {"predicted": 1.0, "error": None}}
    write_json(run.memory, {"predicted": classes, "measured": {**classes, "peak_gib": 2.0}, "phases": phases})
    log.teardown(None, None, "fit")
    assert wandb.pages[0].logged == [
        {
            "memory/peak/predicted": 2.5,
            "memory/peak/measured": 2.0,
            "memory/weights/predicted": 1.0,
            "memory/weights/measured": 1.0,
            "memory/backward/predicted": 2.0,
            "memory/backward/measured": 2.5,
            "memory/backward/error": -0.2,
            "memory/load/predicted": 1.0,
        }
    ]
    assert wandb.pages[0].exit_code == 0


def test_a_broken_receipt_stops_nothing(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunFolder(tmp_path)
    log = begin(OFFLINE, run)
    run.memory.write_text("[]")
    log.teardown(None, None, "fit")
    assert wandb.pages[0].exit_code == 1


def test_what_saves_took_is_sent_to_the_last_of_them(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunFolder(tmp_path)
    log = begin(OFFLINE, run)
    metrics(run, 1)
    saves = [{"step": n, "saved": f"checkpoint {n}", "gib": 4.5, "stalled_seconds": 0.25} for n in (0, 1)]
    write_table(run.saves, saves[:1])
    log.on_train_batch_end(None, None, None, None, 0)
    write_table(run.saves, saves)
    log.teardown(None, None, "fit")
    (page,) = wandb.pages
    told = [{"save/step": n, "save/gib": 4.5, "save/stalled_seconds": 0.25} for n in (0, 1)]
    assert [row for row in page.logged if "save/step" in row] == told
    assert len(page.logged) == 3
    assert page.axes["save/*"] == "save/step"


def test_a_torn_row_waits_until_it_is_whole(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunFolder(tmp_path)
    metrics(run, 2)
    text = run.metrics.read_text()
    run.metrics.write_text(text[:-4])
    log = begin(OFFLINE, run)
    assert [row["train/step"] for row in wandb.pages[0].logged] == [1]
    run.metrics.write_text(text)
    log.on_train_batch_end(None, None, None, None, 0)
    assert [row["train/step"] for row in wandb.pages[0].logged] == [1, 2]


def test_a_resumed_run_refills_its_page(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunFolder(tmp_path)
    metrics(run, 4)
    (tmp_path / "wandb" / "run-20260101_101010-abc-1").mkdir(parents=True)
    log = begin(ONLINE, run)
    metrics(run, 5)
    log.on_train_batch_end(None, None, None, None, 0)
    (page,) = wandb.pages
    assert [row["train/step"] for row in page.logged] == [1, 2, 3, 4, 5]
    assert (page.given["id"], page.given["resume"]) == ("abc-1", "allow")


def test_an_exception_closes_the_page_as_failed(tmp_path: Path, wandb: FakeWandb) -> None:
    log = begin(OFFLINE, RunFolder(tmp_path))
    log.on_exception(None, None, ZeroDivisionError())
    log.teardown(None, None, "fit")
    assert wandb.pages[0].exit_code == 1


def test_training_goes_on_without_a_page_that_breaks(
    tmp_path: Path, wandb: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    log = begin(OFFLINE, run)

    def broken(row: object) -> None:
        raise BrokenPipeError("gone")

    wandb.pages[0].log = broken
    metrics(run, 2)
    log.on_train_batch_end(None, None, None, None, 0)
    log.on_train_batch_end(None, None, None, None, 1)
    assert capsys.readouterr().err.count("stopped listening (gone)") == 1


def test_validation_losses_follow(tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunFolder(tmp_path)
    metrics(run, 2)
    OFFLINE.log_validation(run, {}, "demo")
    assert wandb.pages == []  # nothing is judged yet
    judged = [{"step": 0, "loss/diff": 0.5, "note": "base"}, {"step": 2, "loss/diff": 0.25, "note": ""}]
    write_table(run.evaluated_checkpoints, judged)
    ONLINE.log_validation(run, {}, "demo")
    OFFLINE.log_validation(run, {}, "demo")
    online, offline = wandb.pages
    assert online.logged == [
        {"val/step": 0, "val/rows": 0, "val/loss/diff": 0.5},
        {"val/step": 2, "val/rows": 16, "val/loss/diff": 0.25},
    ]
    assert next(iter(offline.logged[0])) == "train/step"
    assert offline.logged[2:] == online.logged
    assert offline.exit_code == 0


def test_a_page_that_does_not_open_says_how_to_go_on(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.fails = True
    with pytest.raises(RunFailed, match=r"no route to host(.|\n)*logger.mode=offline"):
        begin(OFFLINE, RunFolder(tmp_path))


def test_a_missing_account_is_told_at_once(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.account = False
    with pytest.raises(InputError, match="WANDB_API_KEY"):
        ONLINE.callback(RunFolder(tmp_path), {}, "demo")
    assert OFFLINE.callback(RunFolder(tmp_path), {}, "demo") is not None


def test_a_missing_package_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install wandb"):
        OFFLINE.callback(RunFolder(tmp_path), {}, "demo")


def test_csv_only_adds_nothing(tmp_path: Path) -> None:
    assert CsvOnly().callback(RunFolder(tmp_path), {}, "demo") is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValidationError):
        CsvOnly(project="p")  # type: ignore[call-arg]


def test_settings_load_neither_torch_nor_wandb() -> None:
    code = "import sys, voxtrain.metrics.loggers; print([m for m in ('torch', 'wandb') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


REAL = """
import sys
from pathlib import Path
from voxtrain.metrics.loggers import WandbSettings
from voxtrain.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
settings = WandbSettings(project="p", entity=None, mode="offline")
log = settings.callback(run, {"train": {"max_steps": 3}}, "demo")
log.on_train_start(None, None)
log.teardown(None, None, "fit")
settings.log_validation(run, {}, "demo")
"""


@pytest.mark.slow
def test_real_wandb_offline_says_nothing_and_keeps_every_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    metrics(run, 3)
    write_table(run.evaluated_checkpoints, [{"step": 0, "loss/diff": 0.5}])
    done = subprocess.run([sys.executable, "-c", REAL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    kept = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(kept) == 2  # training, then training again with the validation losses
    texts = [path.read_bytes() for path in kept]
    assert all(text.count(b"train/rows") >= 3 for text in texts)
    assert [b"val/loss/diff" in text for text in texts].count(True) == 1


NOISE = """
import sys
from voxtrain.metrics.noise import silence_third_parties
if sys.argv[1] == "quiet":
    silence_third_parties()
import bitsandbytes, torch
import pytorch_lightning as pl
class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(8192, 2)
    def training_step(self, batch):
        self.layer(torch.ones(2, 8192)).sum().backward()
        self.optimizers().step()
    def configure_optimizers(self):
        return bitsandbytes.optim.PagedAdamW8bit(self.parameters())
trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(Module(), train_dataloaders=[1, 2, 3])
"""


@pytest.mark.slow
def test_third_parties_are_silenced() -> None:
    def said(how: str) -> str:
        command = [sys.executable, "-c", NOISE, how]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    assert "Tip" in said("loud")  # else this test would look at nothing
    assert said("quiet") == ""
