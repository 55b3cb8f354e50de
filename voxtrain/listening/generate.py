"""The same texts from every checkpoint: one speaking model in memory, weights swapped, a WAV file for each sample.

A sample is made once: it is kept as long as weights, text, seed and settings are those that it was made from. What
fails is told in the table and does not stop the others.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from voxtrain.fault import InputError
from voxtrain.listening.measure import measure
from voxtrain.listening.settings import ListeningSettings
from voxtrain.listening.table import (
    IN_REFERENCE,
    Line,
    Sample,
    lines,
    made_from,
    read_samples,
    wave_file,
    write_samples,
)
from voxtrain.listening.waves import write_wave
from voxtrain.model.tuning import LoraTuning
from voxtrain.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from voxtrain.model.speaking import Spoken
    from voxtrain.model.upstream import VoxCPM2Model


@dataclass
class Heard:
    """What came of one call: all samples of the table, and why checkpoints could not speak."""

    samples: list[Sample]
    mute: dict[int, str] = field(default_factory=dict)
    made: int = 0


def listen(run: RunFolder, settings: ListeningSettings, base: Callable[[], Path], lora: LoraTuning | None) -> Heard:
    """Let every complete numbered checkpoint say every text that it has not said yet; write listening.csv after each.

    base: gives the base model's folder, which adapters need. Samples of checkpoints that are gone are kept.
    """
    order = lines(settings)
    standing = {(sample.step, sample.line): sample for sample in read_samples(run) if _is_there(run, sample)}
    here = run.checkpoint_steps()
    heard = Heard([sample for (step, line), sample in standing.items() if step not in here and line in order])
    speaker = _Speaker(settings, base, lora)
    for number, step in enumerate(here, start=1):
        try:
            names = _names(run.checkpoint(step), order, settings)
            kept = [s for line, name in names.items() if (s := standing.get((step, line))) and s.made_from == name]
            missing = [line for line in order if line not in {sample.line for sample in kept}]
            heard.samples += kept
            if not missing:
                continue
            speaker.become(run, step)
        except (InputError, OSError, ValueError, KeyError) as error:
            heard.mute[step] = "; ".join(f.what for f in error.faults) if isinstance(error, InputError) else str(error)
            print(f"step {step} cannot speak: {heard.mute[step]}", file=sys.stderr, flush=True)
            continue
        began = time.monotonic()
        heard.samples += [speaker.say(run, step, line, names[line]) for line in missing]
        heard.made += len(missing)
        _remove_strangers(run.samples(step), {line.file_name() for line in order})
        write_samples(run, heard.samples, order)
        left = (time.monotonic() - began) * (len(here) - number)
        print(f"step {step} has spoken ({number} of {len(here)}, {left:.0f} s left)", file=sys.stderr, flush=True)
    write_samples(run, heard.samples, order)
    return heard


def _is_there(run: RunFolder, sample: Sample) -> bool:
    return not sample.failed and wave_file(run, sample).is_file()


def _names(folder: Path, order: list[Line], settings: ListeningSettings) -> dict[Line, str]:
    from voxtrain.checkpoint.weights import written_checksum

    checksum, voice = written_checksum(folder), _digest(settings.reference)
    return {line: made_from(checksum, line, settings, voice) for line in order}


def _digest(reference: Path | None) -> str:
    return "" if reference is None else hashlib.sha256(reference.read_bytes()).hexdigest()


def _remove_strangers(folder: Path, names: set[str]) -> None:
    """Remove WAV files of texts that are no longer asked for."""
    for path in folder.glob("*.wav"):
        if path.name not in names:
            path.unlink()


class _Speaker:
    """The one model in memory, which becomes one checkpoint after the other."""

    def __init__(self, settings: ListeningSettings, base: Callable[[], Path], lora: LoraTuning | None) -> None:
        self._settings, self._base, self._lora = settings, base, lora
        self._model: VoxCPM2Model | None = None

    def become(self, run: RunFolder, step: int) -> None:
        """Take on a checkpoint's weights. Raises InputError or OSError when they are not whole or do not fit."""
        from voxtrain.checkpoint.weights import check_belongs, put_weights

        check_belongs(run, step)
        folder = run.checkpoint(step)
        if self._model is None:
            self._model = self._load(folder)
        put_weights(self._model, folder, self._lora)

    def _load(self, folder: Path) -> VoxCPM2Model:
        from voxtrain.model.device import chosen_device
        from voxtrain.model.upstream import load_speaker

        device: torch.device = chosen_device("listening.device", self._settings.device)
        return load_speaker(folder, None, device) if self._lora is None else load_speaker(self._base(), folder, device)

    def say(self, run: RunFolder, step: int, line: Line, name: str) -> Sample:
        """Make one sample and its WAV; whatever goes wrong with it is told in the sample."""
        from voxtrain.model.speaking import sample_rate_hz

        assert self._model is not None, "become comes first"
        try:
            spoken, rate_hz = self._spoken(line), sample_rate_hz(self._model)
            measures = measure(spoken.wave, rate_hz, line.text)
        except Exception as error:  # upstream raises many kinds, a card out of memory among them
            why = " ".join(str(error).split())[:200] or type(error).__name__
            return Sample(step, line, name, runaway=False, failed=why, measures=None)
        sample = Sample(step, line, name, not spoken.stopped, "", measures)
        write_wave(wave_file(run, sample), spoken.wave, rate_hz)
        return sample

    def _spoken(self, line: Line) -> Spoken:
        from voxtrain.model.speaking import speak

        assert self._model is not None
        settings = self._settings
        reference = settings.reference if line.voice == IN_REFERENCE else None
        steps, cfg = settings.inference_timesteps, settings.cfg_value
        return speak(self._model, line.text, reference, line.torch_seed(), settings.max_positions(), steps, cfg)
