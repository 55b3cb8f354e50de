"""The model that is measured: VoxCPM 2's architecture, scaled down, as a folder that upstream and voxtrain both load.

Weights are random: what a step costs does not depend on them. So is the AudioVAE, levelled as the demo's is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from voxtrain.fault import Fault, InputError
from voxtrain.model.size import parameter_counts
from voxtrain.model.tiny_build import METADATA, level
from voxtrain.model.upstream import build_model, build_vae, quiet
from voxtrain.settings import compose

SHAPE = Path(__file__).parent / "shape_90m.json"
VOCABULARY = 1500
"""Tokens, learnt from the transcripts: about 4 characters of English each, as released models have them. With a
token for each letter upstream would look worse than it is: it works as hard at text positions as elsewhere."""
SEED = 1


def read_shape(path: Path) -> dict[str, Any]:
    """The architecture in a shape file, as it stands in a model's config.json. Raises InputError."""
    remedy = f"name a file as {SHAPE} is"
    try:
        architecture: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8"))["architecture"])
        parameter_counts(architecture)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(Fault(f"--shape {path}", f"it holds no architecture: {error!r}", remedy)) from None
    return architecture


def released_shape() -> dict[str, Any]:
    """The architecture of the released VoxCPM 2."""
    architecture: dict[str, Any] = dict(
        compose(["model.path=.", "data.manifest=rows.jsonl"]).plain["model"]["architecture"]
    )
    return architecture


def build_folder(folder: Path, architecture: dict[str, Any], texts: Sequence[str]) -> Path:
    """Write a model folder as upstream's `from_local` wants it, its tokenizer learnt from `texts`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(architecture), encoding="utf-8")
    _learnt_tokenizer(texts, min(VOCABULARY, architecture["lm_config"]["vocab_size"])).save(
        str(folder / "tokenizer.json")
    )
    names = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        torch.manual_seed(SEED)
        vae = build_vae(architecture).eval()
        model = build_model(architecture, folder, vae)
        level(vae)
        named = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("audio_vae.")}
        save_file(named, folder / "model.safetensors", METADATA)
        save_file(vae.state_dict(), folder / "audiovae.safetensors", METADATA)
    return folder


def _learnt_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-pair encoding. Tokens 101 to 104 open and close audio: they are in the vocabulary, and in no text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first")
    spare = [f"<spare_{token}>" for token in range(3, 101)]
    special = ["<unk>", "<s>", "</s>", *spare, "<audio>", "</audio>", "<reference>", "</reference>"]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
