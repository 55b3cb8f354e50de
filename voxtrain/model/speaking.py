"""Speech from a model in speaking form, as upstream's users get it; whether it stopped; the AudioVAE alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from voxtrain.fault import Fault, InputError
from voxtrain.model.upstream import AudioVAEV2, VoxCPM2Model, quiet

UNBOUND = 1e6
"""Upstream cuts what is said after 6 positions for each token of the text and 10 more, also where it would not try a
bad case again (voxcpm2.py: `_generate`). A text is to be cut where the caller says, and nowhere before."""


@dataclass(frozen=True)
class Spoken:
    """What came out."""

    wave: np.ndarray  # [samples] float32 at `sample_rate_hz(model)`
    stopped: bool  # by itself, not cut at the greatest length


def speak(
    model: VoxCPM2Model,
    text: str,
    reference: Path | None,
    seed: int,
    max_len: int,
    inference_timesteps: int,
    cfg_value: float,
) -> Spoken:
    """Speech for `text` of at most `max_len` audio positions, in the voice of `reference` where one is given.

    A bad case is not tried again. voxcpm 2.0.3 takes no seed, so torch's generators are seeded here and put back
    afterwards. Raises InputError when text and reference leave no room for speech.
    """
    cuda = [torch.cuda.current_device()] if str(model.device).startswith("cuda") else []
    room = _room(model, text, reference)
    with torch.random.fork_rng(devices=cuda), quiet(), _last_word(model.stop_head) as said:
        torch.manual_seed(seed)
        wave = model.generate(
            target_text=text,
            reference_wav_path="" if reference is None else str(reference),
            max_len=min(max_len, room),
            inference_timesteps=inference_timesteps,
            cfg_value=cfg_value,
            retry_badcase=False,
            retry_badcase_ratio_threshold=UNBOUND,
        )
    return Spoken(np.asarray(wave.squeeze(0).to(torch.float32).numpy()), stopped=bool(said[-1].argmax(-1)[0] == 1))


def sample_rate_hz(model: VoxCPM2Model) -> int:
    """The rate of what `speak` returns."""
    return int(model.sample_rate)


def round_trip(vae: AudioVAEV2, wave: np.ndarray) -> tuple[np.ndarray, int]:
    """A recording, [samples] at 16 kHz, through the AudioVAE and back: [samples] float32, and its rate in Hz.

    No checkpoint can sound better: what it says goes through the same decoder.
    """
    device = next(vae.parameters()).device
    audio = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)).to(device)
    audio = torch.nn.functional.pad(audio, (0, -audio.numel() % int(vae.hop_length)))
    with torch.no_grad():
        heard = vae.decode(vae.encode(audio[None, None], vae.sample_rate))
    rate_hz = int(vae.out_sample_rate)
    return np.asarray(heard.flatten().cpu().numpy())[: len(wave) * rate_hz // int(vae.sample_rate)], rate_hz


def _room(model: VoxCPM2Model, text: str, reference: Path | None) -> int:
    """How many audio positions fit: the KV caches hold max_length positions."""
    longest, tokens = model.config.max_length, len(model.text_tokenizer(text))
    heard = 0 if reference is None else _positions(model, reference) + 2  # between its two tokens
    if longest - tokens - heard - 1 < 1:
        with_it = f" and the reference's {heard} positions" if heard else ""
        what = f"its {tokens} tokens{with_it} leave no room for speech"
        raise InputError(Fault(f"the text '{text[:40]}...'", what, f"say less than {longest} tokens at once"))
    return int(longest - tokens - heard - 1)


def _positions(model: VoxCPM2Model, audio: Path) -> int:
    samples = soundfile.info(audio).duration * model.audio_vae.sample_rate
    return int(-(-samples // (model.patch_size * model.audio_vae.hop_length)))


@contextmanager
def _last_word(stop_head: nn.Module) -> Iterator[list[Tensor]]:
    """The stop head's latest logits [1, 2]: upstream ends at the first that say so, and else at the greatest length."""
    said: list[Tensor] = []

    def hear(_module: nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        said[:] = [logits]

    handle = stop_head.register_forward_hook(hear)
    try:
        yield said
    finally:
        handle.remove()
