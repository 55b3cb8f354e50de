"""Build the tiny VoxCPM 2: a folder as upstream's `from_local` wants it, with random weights that can learn and speak.

Everything is drawn from one seed. The random AudioVAE is levelled, so that latents of speech-like sound have about
zero mean and unit variance (as the flow-matching loss expects) and decoded latents are neither silent nor clipped;
the levels are powers of two and sixteenths, so that rounding differences between machines do not reach the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from voxtrain.durable import folder_aside
from voxtrain.model.upstream import AudioVAEV2, build_model, build_vae

METADATA = {"format": "pt"}  # more keys would make the bytes differ from process to process


def build(target: Path, architecture: dict[str, Any], seed: int) -> None:
    """Write the model's folder, complete or not at all."""
    with folder_aside(target) as aside, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        (aside / "config.json").write_text(json.dumps(architecture, indent=2) + "\n", encoding="utf-8")
        write_tokenizer(aside)
        vae = build_vae(architecture).eval()
        model = build_model(architecture, aside, vae)
        with torch.no_grad():
            level(vae)
        named = model.state_dict().items()
        save_file({k: v for k, v in named if not k.startswith("audio_vae.")}, aside / "model.safetensors", METADATA)
        save_file(vae.state_dict(), aside / "audiovae.safetensors", METADATA)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that gives one token for each ASCII character and one for each byte of any other.

    Tokens 101 to 104 open and close audio: they stand in the vocabulary, and no text can produce them, since a
    byte-pair model without merges never joins two characters.
    """
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "\u2581": 3}
    vocabulary |= {chr(code): len(vocabulary) + code - 33 for code in range(33, 127)}
    vocabulary |= {f"<spare_{token}>": token for token in range(len(vocabulary), 101)}
    vocabulary |= {"<audio>": 101, "</audio>": 102, "<reference>": 103, "</reference>": 104}
    vocabulary |= {f"<0x{byte:02X}>": 105 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def level(vae: AudioVAEV2) -> None:
    """Bring the random AudioVAE's latents to about zero mean and unit variance, and its sound to about 0.1 RMS."""
    mu = vae.encoder.fc_mu
    _level(mu, vae.encode(speech_like(vae.sample_rate), vae.sample_rate), 1.0)
    latents = torch.randn(1, vae.latent_dim, 100)
    *_, last, _ = vae.decoder.model  # the convolution before the final tanh
    _level(last, torch.atanh(vae.decode(latents)), 0.1)


def _level(convolution: torch.nn.Module, output: Tensor, target: float) -> None:
    """Scale and shift a weight-normed convolution so that `output` [1, C, T] would have mean 0 and std `target`."""
    mean, std = output.mean(dim=(0, 2)), output.std(dim=(0, 2))
    gain = torch.exp2(torch.log2(target / std).round())
    own = dict(convolution.named_parameters())
    own["weight_g"].mul_(gain.view(-1, 1, 1))
    own["bias"].copy_(((own["bias"] - mean) * gain * 16).round() / 16)


def speech_like(sample_rate_hz: int) -> Tensor:
    """[1, 1, samples]: four seconds of buzz and noise under syllable-like envelopes, with pauses."""
    time_s = torch.arange(4 * sample_rate_hz) / sample_rate_hz
    pitch_hz = 120 + 30 * torch.sin(2 * torch.pi * 0.7 * time_s)
    phase = 2 * torch.pi * torch.cumsum(pitch_hz, 0) / sample_rate_hz
    buzz = sum(torch.sin(k * phase) / k for k in range(1, 20))
    envelope = torch.clamp(torch.sin(2 * torch.pi * 2.3 * time_s), min=0.0)
    return (0.1 * envelope * buzz + 0.03 * (1 - envelope) * torch.randn(time_s.shape)).view(1, 1, -1)
