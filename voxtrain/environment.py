"""What machine and which packages a run was made with: `environment.json`, the ground of every 'bit for bit'."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

PACKAGES = (
    "voxtrain",
    "torch",
    "torchaudio",
    "voxcpm",
    "bitsandbytes",
    "pytorch-lightning",
    "hydra-core",
    "omegaconf",
    "transformers",
    "safetensors",
    "numpy",
    "soundfile",
    "wandb",
)


def describe() -> dict[str, Any]:
    """Machine, threads, devices and package versions. Imports torch."""
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "packages": package_versions(),
        "variables": {key: os.environ[key] for key in _VARIABLES if key in os.environ},
    }


_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def package_versions() -> dict[str, str | None]:
    """Version of every package that a result can depend on; null where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30, 2),
        "capability": f"{found.major}.{found.minor}",
    }
