"""A disk that fails at every call of a save in turn: the older state is whole, and the run goes on bit for bit."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_disk import FaultyDisk, installed
from learner import Learner, checkpoint_plan, fit

from voxtrain.checkpoint.callback import SaveCheckpoints
from voxtrain.checkpoint.facts import check_content, read_facts
from voxtrain.checkpoint.stop import StopRequest
from voxtrain.checkpoint.weights import check_content as check_checkpoint
from voxtrain.durable import read_json
from voxtrain.fault import RunFailed
from voxtrain.memory.disk import writable_faults
from voxtrain.metrics.step_log import StepLog
from voxtrain.run_folder import RunFolder
from voxtrain.run_record import RunRecord

TOTAL = 4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "audiovae.pth").write_bytes(b"vae")
    return folder


def sitting(run: RunFolder, base: Path, disk: FaultyDisk, *, background: bool, resumes: bool) -> tuple[Learner, str]:
    """Train until the end or a failure; returns what was trained and, in words, why it ended early."""
    newest = max(run.state_steps(), default=0) if resumes else 0
    module = Learner(TOTAL, seed=99 if resumes else 0, done=newest)

    def break_the_disk(step: int) -> None:
        if step == 2:
            saver._writer.settle()  # step 0 is saved: there is something to lose
            disk.on = True

    module.at_step = break_the_disk
    plan = checkpoint_plan(every=2, state_every=2, background=background)
    saver = SaveCheckpoints(run, plan, TOTAL, base, None, {"seed": 1}, StopRequest(), resumes, {"torch": "2"})
    said = ""
    with installed(disk):
        try:
            fit(module, saver)
        except RunFailed as error:
            said = str(error)
        finally:
            disk.on = False
            saver._stop.uninstall()
    return module, said or saver.stopped or ""


def whole_run() -> Learner:
    module = Learner(TOTAL)
    fit(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("background", [False, True], ids=["now", "beside"])
@pytest.mark.parametrize(
    ("code", "for_good"),
    [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EROFS, True), (errno.EACCES, False)],
    ids=["full_once", "full", "read_only", "forbidden_once"],
)
def test_whatever_call_of_a_save_fails_the_run_goes_on_bit_for_bit(
    tmp_path: Path, base: Path, background: bool, code: int, for_good: bool
) -> None:
    whole, root = whole_run(), tmp_path / "run"
    run = RunFolder(root)
    sound = FaultyDisk(root)
    sitting(run, base, sound, background=background, resumes=False)
    assert {call.split()[0] for call in sound.calls} >= {"open", "write", "close", "fsync", "rename", "replace", "link"}
    assert len(sound.calls) > 60, "two saves make more calls than were seen"
    told = 0
    for number in range(len(sound.calls)):
        shutil.rmtree(root)
        disk = FaultyDisk(root, number, code, for_good=for_good)
        first, why = sitting(run, base, disk, background=background, resumes=False)
        where = f"{disk.calls[number] if len(disk.calls) > number else 'no call'}: {why}"
        if why:
            told += 1
            words = "disk is low" if code == errno.ENOSPC else "could not be written"
            assert words in why, where
            assert ("free some space" if code == errno.ENOSPC else f"resume={root}") in why, where
        newest = read_facts(run).step
        check_content(run.state(newest), read_facts(run))
        for step in run.checkpoint_steps():
            check_checkpoint(run.checkpoint(step))
        # what did not fit beside training, which is further by now, is told and left out
        left_out = [2] if background and newest > 2 and not run.checkpoint(2).exists() else []
        assert not left_out or "checkpoint 2 needs" in why, where
        rest, said = sitting(run, base, FaultyDisk(root), background=background, resumes=True)
        assert said == "", where
        assert first.losses[:newest] + rest.losses == whole.losses, where
        if newest < TOTAL:
            assert all(torch.equal(a, b) for a, b in zip(rest.parameters(), whole.parameters(), strict=True)), where
        assert run.checkpoint_steps() == [step for step in (0, 2, 4) if step not in left_out], where
        assert run.state_steps() == [TOTAL], where
        assert run.latest.resolve() == run.checkpoint(TOTAL), where
        assert not list(root.rglob(".*")), where
    assert told > 0.8 * len(sound.calls), "most failures of a save are told"


class Report:
    """As much of a step as the log asks for."""

    step, loss_total, loss_diff, loss_stop, grad_norm, lr = 1, 1.0, 0.9, 0.1, 2.0, 0.1
    rows_seen, micro_batches, padding_share, positions, seconds, audio_seconds = 8, 1, 0.0, 10, 0.1, 3.0
    skipped = False


def write_a_step(run: RunFolder) -> None:
    log = StepLog(run, 0)
    try:
        log.setup(None, None, "fit")  # type: ignore[arg-type]
        module = Learner(1)
        log.on_train_batch_end(None, module, {"report": Report()}, None, 0)  # type: ignore[arg-type]
    finally:
        log.close()


def close_a_record(run: RunFolder) -> None:
    record = RunRecord(run, ())
    record.write(steps=1)


@pytest.mark.parametrize("write", [write_a_step, close_a_record])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_logs_that_cannot_be_written_say_which_why_and_how_to_go_on(
    tmp_path: Path, write: Callable[[RunFolder], None], code: int
) -> None:
    run = RunFolder(tmp_path)
    with installed(FaultyDisk(tmp_path)) as sound:
        sound.on = True
        write(run)
    assert len(sound.calls) > 3
    said = []
    for number in range(len(sound.calls)):
        for file in tmp_path.iterdir():
            file.unlink()
        if number % 2:
            run.state(0).mkdir(parents=True)
        with installed(FaultyDisk(tmp_path, number, code)) as disk:
            disk.on = True
            try:
                write(run)
            except RunFailed as error:
                said.append(str(error))
        shutil.rmtree(run.states, ignore_errors=True)
    assert all("could not be written" in words for words in said)
    assert all(f"resume={tmp_path}" in words or f"remove {tmp_path} and start again" in words for words in said)
    assert len({"resume=" in words for words in said}) == 2, "with a state and without"
    assert len(said) >= len(sound.calls) - 2  # closing a log, and sweeping up, may fail without a word


def test_a_run_whose_end_cannot_be_recorded_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord(RunFolder(tmp_path), ())
    record.write(steps=0)
    RunFolder(tmp_path).state(0).mkdir(parents=True)
    monkeypatch.setattr("voxtrain.run_record.completion_evidence", lambda _: {"complete": True})
    for status, code, ends_with in (("finished", 0, 1), ("stopped", 3, 3)):
        with installed(FaultyDisk(tmp_path, 0, errno.ENOSPC, for_good=True)) as disk:
            disk.on = True
            record.close(status, code)
        assert record.exit_code == ends_with
        told = capsys.readouterr().err
        assert "run.json could not be written: No space left on device" in told
        assert (f"resume={tmp_path}" in told) is (status == "finished")
    assert read_json(tmp_path / "run.json")["status"] == "running"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder = tmp_path / "not" / "yet"
    assert writable_faults(folder) == []
    assert list(tmp_path.iterdir()) == []

    def refuse(**_: Any) -> None:
        raise OSError(code, "as said")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    [fault] = writable_faults(folder)
    assert f"nothing can be written in {tmp_path}: as said" in fault.what
    assert "hydra.run.dir" in fault.remedy
