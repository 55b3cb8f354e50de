"""Where a post-hoc process computes, and what makes one machine's latents equal another's."""

from __future__ import annotations

import platform
from importlib.metadata import version

import soundfile
import torch

from voxtrain.fault import Fault, InputError


def chosen_device(setting: str, wanted: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises InputError when `cuda` is asked for and not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(Fault(f"{setting} = cuda", "torch sees no CUDA GPU here", f"{setting}=cpu or {setting}=auto"))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", 0) if wanted == "cuda" else torch.device("cpu")


def encoding_machine(device_type: str) -> tuple[str, ...]:
    """What latents depend on besides weights and threads: versions of what reads and encodes, and the chip.

    torch's version names its CUDA. On a GPU too a CPU resamples, with the same bits whatever the number of threads.
    """
    packages = ("torchaudio", "voxcpm", "soundfile", "numpy")
    versions = [f"torch {torch.__version__}", *(f"{name} {version(name)}" for name in packages)]
    chip = [
        f"libsndfile {soundfile.__libsndfile_version__}",
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
    ]
    if device_type == "cuda":
        chip += [torch.cuda.get_device_name(), f"cudnn {torch.backends.cudnn.version()}"]  # type: ignore[no-untyped-call]
    return (*versions, *chip)
