"""Where a post-hoc process computes."""

from __future__ import annotations

import torch

from voxtrain.fault import Fault, InputError


def chosen_device(setting: str, wanted: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises InputError when `cuda` is asked for and not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(Fault(f"{setting} = cuda", "torch sees no CUDA GPU here", f"{setting}=cpu or {setting}=auto"))
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", 0) if wanted == "cuda" else torch.device("cpu")
