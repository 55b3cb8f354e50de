"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import soundfile
from omegaconf import DictConfig, OmegaConf

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Importing torch and its like leaves a million objects for good: the garbage collector need not look at them.

    Afterwards it comes by ten times less often than Python's default; what is imported late would be looked at as well.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(7000, 10, 10)
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """The options of conf/ do not change while tests run: what was composed before is copied, at a fifth of the time.

    Nothing in what is composed is resolved yet, so neither the environment nor the working folder has a part in it;
    with Hydra's own settings they have, and faults are told anew.
    """
    from voxtrain import composition

    really, known = composition.hydra_compose, {}

    def compose(name: str, overrides: list[str], return_hydra_config: bool = False) -> DictConfig:
        searches = any("searchpath" in override for override in overrides)
        if return_hydra_config or searches:
            return really(name, overrides, return_hydra_config=return_hydra_config)
        key = tuple(overrides)
        if key not in known:
            known[key] = really(name, overrides)
        return deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composition, "hydra_compose", compose)
        patch.setattr(OmegaConf, "load", staticmethod(parsed_once(OmegaConf.load)))
        yield


def parsed_once(really: Callable[[object], object]) -> Callable[[object], object]:
    """What a YAML file says, parsed once: the parser is plain Python, and Hydra reads forty files for one run."""
    known: dict[str, object] = {}

    def load(file: object) -> object:
        if not isinstance(file, io.TextIOBase):
            return really(file)
        text = file.read()
        if text not in known:
            known[text] = really(io.StringIO(text))
        return deepcopy(known[text])

    return load


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Benchmarks set torch's threads; the tests after theirs compute with those they were started with.

    It matters: the model rounds in its middle, so that another order of adding can turn the last bit into a whole step.
    """
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for the session: the tiny model and latents are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(cache: Path):
    """The settings of the tiny model."""
    from voxtrain.settings import compose

    return compose(["+recipe=demo", f"data.cache_dir={cache}"]).model


@pytest.fixture(scope="session")
def tiny_folder(tiny) -> Path:
    """A model folder of the tiny VoxCPM 2."""
    return tiny.folder()


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str, str]]:
    """Eight clips (path, text, parent) of tones at 16 kHz, over four parents, 0.5 to 1.2 seconds long."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for number in range(8):
        seconds = 0.5 + 0.1 * number
        time_s = np.arange(int(16000 * seconds)) / 16000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 40 * number) * time_s)
        path = folder / f"clip_{number}.wav"
        soundfile.write(path, wave.astype(np.float32), 16000)
        made.append((path, f"clip number {number} of eight", f"parent_{number % 4}"))
    return made


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real speech beside the checkout; tests that need it skip where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "speech" / "manifest.jsonl").is_file():
        pytest.skip("the real speech beside the checkout (../shared/speech) is not here")
    return folder
