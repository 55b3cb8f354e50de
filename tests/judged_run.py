"""A small run folder as training leaves it: settings, split rows, checkpoints of the tiny model at a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from voxtrain.checkpoint.writer import write_checkpoint
from voxtrain.durable import write_jsonl, write_whole
from voxtrain.model.upstream import adapters, load_model
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.settings import Settings, load
from voxtrain.validation.judge import Sources

CPU = torch.device("cpu")
LISTENING = (
    *("listening.max_seconds=1", "listening.seeds=1", "listening.ceiling=0"),
    *("listening.word_errors=null", "listening.similarity=null"),
)
"""Quicker than the default."""


def make_run(
    root: Path, cache: Path, clips: list[tuple[Path, str, str]], steps: tuple[int, ...], recipe: str, *extra: str
) -> RunFolder:
    """A run folder whose checkpoints differ by fixed random changes; all clips are validation rows."""
    from voxtrain.settings import compose

    run = RunFolder(root)
    settings = compose([f"+recipe={recipe}", f"data.cache_dir={cache}", *LISTENING, *extra])
    write_whole(run.config, OmegaConf.to_yaml(OmegaConf.create(settings.plain)))
    write_jsonl(DataFolder(run.data).rows("validation"), [_record(*clip, line) for line, clip in enumerate(clips, 1)])
    base = settings.model.folder()
    lora = None if settings.tuning.lora_config() is None else settings.tuning
    model = load_model(base, lora, CPU, torch.float32)
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        start = adapters(model) if lora else model.state_dict()
        scale = 0.02 if step else 0.0
        tensors = {
            name: tensor.detach() + scale * torch.randn(tensor.shape, generator=generator)
            for name, tensor in start.items()
        }
        write_checkpoint(run, step, tensors, base, settings.tuning.adapter_config(), "fp32", {"rows_seen": 8 * step})
    return run


def settings_of(run: RunFolder) -> Settings:
    """The settings of the run folder."""
    return load(run.root)


def sources_of(run: RunFolder) -> Sources:
    """What the judge needs to know of the run's making."""
    settings = settings_of(run)
    lora: Any = None if settings.tuning.lora_config() is None else settings.tuning
    return Sources(settings.model.folder, lora, settings.data.latent_folder(), settings.clean.trim_tail_silence)


def _record(audio: Path, text: str, parent: str, line: int) -> dict[str, Any]:
    record = {"id": f"row{line}", "audio": str(audio), "text": text, "duration": None, "group": parent, "line": line}
    return record | {"parent": parent}
