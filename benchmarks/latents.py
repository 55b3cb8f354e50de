"""What the latent cache saves: the time of a training step with it and without, and what it takes on disk."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.material import read_material
from benchmarks.our_loop import Choices, OurData, OurLoop
from benchmarks.shape import SHAPE, build_folder, read_shape
from voxtrain.data.audio import read_wave
from voxtrain.model.upstream import load_encoder, load_model

ROUNDS = 3
HOUR_S = 3600
MB = 1e6


def latents(speech: Path, scratch: Path) -> None:
    """Print both step times, their ratio, and bytes for each hour of speech."""
    material, shape, device = read_material(speech), read_shape(SHAPE), torch.device("cpu")
    folder = build_folder(scratch / "model", shape, material.texts)
    data = OurData(folder, shape, material.rows, scratch / "latents")
    stored = sum(path.stat().st_size for path in (scratch / "latents").rglob("*.f32"))
    encode = load_encoder(folder)
    loop = OurLoop(load_model(folder, None, device, torch.float32), data, Choices(True, True, "plain"), device)
    times: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(ROUNDS + 1):
        for which, found in times.items():
            began_s = time.perf_counter()
            if which == "without":
                for row in material.rows:
                    encode(read_wave(row.audio))
            loop.step()
            found.append(time.perf_counter() - began_s)
    took = {which: median(found[1:]) for which, found in times.items()}  # the first makes the optimizer's state
    print(f"a step of {len(material.rows)} rows ({material.audio_s:.1f} s of speech), 90 M parameters on the CPU:")
    print(f"  with cached latents {took['with']:.2f} s, without {took['without']:.2f} s")
    print(f"  the cache takes {stored / material.audio_s * HOUR_S / MB:.2f} MB for an hour of speech")
    print(f"ratio latents {took['without'] / took['with']:.2f}")
