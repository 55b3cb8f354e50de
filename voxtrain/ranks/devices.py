"""What can be said of a run's devices before it starts: are there enough, and did somebody start copies of it.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from voxtrain.fault import Fault

LAUNCHERS = {
    "torchrun": "WORLD_SIZE",
    "srun with several tasks": "SLURM_STEP_NUM_TASKS",
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "an MPI launcher": "PMI_SIZE",
}
"""Who starts several copies of a command, and the variable in which each finds their number."""


def launcher_faults(environment: Mapping[str, str] = os.environ) -> list[Fault]:
    """Copies of one command would each train the whole run, all into folders of one name."""
    for launcher, variable in LAUNCHERS.items():
        count = environment.get(variable, "")
        if count.isdigit() and int(count) > 1:
            what = f"{launcher} started {count} copies of this command, and each would be a run of its own"
            remedy = "start the command once, with trainer=ddp trainer.devices=N: it starts its own processes"
            return [Fault(f"{variable} = {count}", what, remedy)]
    return []


def usable_gpus(environment: Mapping[str, str] = os.environ) -> int:
    """How many NVIDIA GPUs torch will see: those of this machine that CUDA_VISIBLE_DEVICES leaves."""
    import pynvml

    try:
        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    return visible_of(count, environment.get("CUDA_VISIBLE_DEVICES"))


def visible_of(count: int, visible: str | None) -> int:
    """Of `count` GPUs, how many CUDA shows; it reads its variable up to the first entry that names none."""
    if visible is None:
        return count
    shown = 0
    for entry in map(str.strip, visible.split(",")):
        named = entry.startswith(("GPU-", "MIG-")) or (entry.isdigit() and int(entry) < count)
        if not named:
            break
        shown += 1
    return shown


def gpu_faults(devices: int, usable: int) -> list[Fault]:
    """More processes than GPUs: two on one card would share its memory, which no plan counts with."""
    if devices <= usable:
        return []
    if usable == 0:
        return [
            Fault(
                "trainer.accelerator = cuda",
                "no NVIDIA GPU was found on this machine",
                "run `python -m voxtrain.doctor`, or try +recipe=demo, which needs none",
            )
        ]
    what = f"each process needs an NVIDIA GPU, and of those here {usable} may be used"
    return [Fault(f"trainer.devices = {devices}", what, f"say trainer.devices={usable}, or mend CUDA_VISIBLE_DEVICES")]
