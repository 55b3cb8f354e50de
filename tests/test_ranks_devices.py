"""Devices that are not there and copies that somebody else started are told before anything starts."""

from __future__ import annotations

import pytest

from voxtrain.fault import InputError
from voxtrain.preflight import plan_start, world_faults
from voxtrain.ranks.devices import gpu_faults, launcher_faults, visible_of
from voxtrain.settings import compose


@pytest.mark.parametrize(
    ("visible", "usable"),
    [(None, 4), ("", 0), ("2", 1), ("0,3", 2), ("0, 1 ,2", 3), ("0,7,1", 1), ("-1", 0), ("GPU-12ab,GPU-34cd", 2)],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible: str | None, usable: int) -> None:
    assert visible_of(4, visible) == usable


def test_more_processes_than_gpus() -> None:
    assert gpu_faults(2, 2) == gpu_faults(1, 8) == []
    (fault,) = gpu_faults(4, 2)
    assert fault.where == "trainer.devices = 4"
    assert "trainer.devices=2" in fault.remedy
    (fault,) = gpu_faults(1, 0)
    assert "no NVIDIA GPU" in fault.what


@pytest.mark.slow
def test_preflight_counts_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("voxtrain.preflight.usable_gpus", lambda: 2)
    gpus = ["+recipe=demo", "trainer=ddp", "memory=24gb"]
    told = {
        devices: [fault.where for fault in world_faults(plan_start([*gpus, f"trainer.devices={devices}"]))]
        for devices in (2, 3)
    }
    assert told[3] == ["trainer.devices = 3", *told[2]]


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, "torchrun"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # inside a batch script: one copy
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),  # submitit's srun
        ({}, None),
    ],
)
def test_copies_that_another_launcher_started_are_refused(environment: dict[str, str], launcher: str | None) -> None:
    faults = launcher_faults(environment)
    assert len(faults) == (launcher is not None)
    if launcher is not None:
        assert launcher in faults[0].what
        assert "trainer=ddp" in faults[0].remedy


def test_preflight_refuses_copies(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    start = plan_start(["+recipe=demo"])
    assert [fault for fault in world_faults(start) if "WORLD_SIZE" in fault.where] == []
    monkeypatch.setattr("voxtrain.preflight.launcher_faults", lambda: launcher_faults({"WORLD_SIZE": "2"}))
    assert [fault.where for fault in world_faults(start)] == ["WORLD_SIZE = 2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["trainer.devices=0"], "trainer.devices = 0"),
        (["trainer.devices=9"], "trainer.devices = 9"),  # the demo has 8 rows a step
        (["trainer=ddp", "memory=24gb"], "trainer.devices"),  # how many has to be said
    ],
)
def test_numbers_that_cannot_be(overrides: list[str], where: str) -> None:
    with pytest.raises(InputError) as caught:
        compose(["+recipe=demo", *overrides])
    assert [fault.where for fault in caught.value.faults] == [where]
