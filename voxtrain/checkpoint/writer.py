"""Numbered checkpoints: folders that upstream's tools load as they are, complete or absent.

Full fine-tuning: `model.safetensors` beside the base model's own config, tokenizer and AudioVAE. LoRA:
`lora_weights.safetensors` and `lora_config.json`, or ours where upstream cannot name all adapters
(model/adapter_files.py). In both `step.json` says what the folder holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from voxtrain import __version__
from voxtrain.checkpoint.digests import sha256_of
from voxtrain.checkpoint.stream import LazyTensor, lazily, write_safetensors
from voxtrain.durable import flush_folder, folder_aside, write_json
from voxtrain.fault import Fault, InputError
from voxtrain.model.adapter_files import described, files_for
from voxtrain.run_folder import RunFolder

MODEL, STEP = "model.safetensors", "step.json"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

AUDIO_VAE = ("audiovae.safetensors", "audiovae.pth")
"""The AudioVAE's names, in the order in which upstream looks for them (model/voxcpm2.py: from_local)."""

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What else of the base folder belongs to a checkpoint, where it exists."""

COPIED = ("config.json",)
"""Never linked: people edit it by hand, and an edit must not reach the base model and all other checkpoints."""


def write_checkpoint(
    run: RunFolder,
    step: int,
    tensors: Mapping[str, Tensor | LazyTensor],
    base: Path,
    lora_config: Mapping[str, Any] | None,
    dtype: Literal["bf16", "fp32"],
    facts: Mapping[str, Any],
) -> Path:
    """Write the checkpoint after `step` updates, unless it stands there already, and point `latest` at the newest.

    tensors: full: all but the AudioVAE's, under upstream's keys, written in `dtype`; LoRA: the adapter's, written in
    fp32. lora_config: LoraTuning.adapter_config. facts: put into step.json as they are (rows seen, ...). Raises OSError
    when the disk is full or not writable; the folder is absent then.
    """
    folder = run.checkpoint(step)
    if not folder.exists():
        with folder_aside(folder) as aside:
            if lora_config is None:
                sums = _write_full(aside, tensors, base, DTYPES[dtype])
            else:
                sums = _write_adapter(aside, tensors, base, lora_config)
            write_json(aside / STEP, {"step": step, **facts, "voxtrain": __version__, "sha256": sums})
    point_latest(run)
    return folder


def _write_full(
    aside: Path, tensors: Mapping[str, Tensor | LazyTensor], base: Path, dtype: torch.dtype
) -> dict[str, str]:
    sums = {MODEL: write_safetensors(aside / MODEL, lazily(tensors, dtype))}
    for source in companions(base):
        link_or_copy(source, aside / source.name)
        sums[source.name] = sha256_of(source)
    return sums


def _write_adapter(
    aside: Path, tensors: Mapping[str, Tensor | LazyTensor], base: Path, lora_config: Mapping[str, Any]
) -> dict[str, str]:
    files = files_for(lora_config)
    written = write_safetensors(aside / files.weights, lazily(tensors, torch.float32))
    write_json(aside / files.config, described(base, lora_config))
    return {files.weights: written, files.config: sha256_of(aside / files.config)}


def companions(base: Path) -> list[Path]:
    """The files of a base folder that a full checkpoint carries unchanged. Raises InputError where one is missing."""
    found = [base / name for name in COMPANIONS if (base / name).is_file()]
    vae = [base / name for name in AUDIO_VAE if (base / name).is_file()][:1]
    names = {path.name for path in found}
    missing = [name for name in ("config.json",) if name not in names] + ([] if vae else [" or ".join(AUDIO_VAE)])
    if missing:
        raise InputError(
            Fault(
                f"model.path = {base}",
                f"the folder has no {' and no '.join(missing)}",
                "download openbmb/VoxCPM2 again, or name a complete folder",
            )
        )
    return found + vae


def link_or_copy(source: Path, target: Path) -> None:
    """Let the file share its blocks with the base model's (twelve checkpoints need one AudioVAE), or copy it.

    A reflink (btrfs, XFS) shares blocks until one of the two is written to; a hard link is the same file; a copy is
    made where neither can be.
    """
    source = source.resolve()  # a hub snapshot holds symlinks; a link to one would break when the cache is moved
    if _reflink(source, target):
        return
    if target.name not in COPIED:
        try:
            os.link(source, target)
            return
        except OSError as error:  # another file system, or one without hard links, or a file of another user
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
    shutil.copyfile(source, target)


FICLONE = 0x40049409
"""ioctl_ficlone(2): make a file share all blocks of another."""


def _reflink(source: Path, target: Path) -> bool:
    """Whether the file system could do it; nothing is left where it could not."""
    with source.open("rb") as old, target.open("wb") as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old.fileno())
            return True
        except OSError:
            pass
    target.unlink()
    return False


def point_latest(run: RunFolder) -> None:
    """Make `checkpoints/latest` a relative link to the newest complete checkpoint, in one rename."""
    newest = run.checkpoint(run.checkpoint_steps()[-1])
    latest = run.latest
    if latest.is_symlink() and latest.readlink() == Path(newest.name):
        return
    aside = newest.with_name(f".writing_{os.getpid()}_latest")
    aside.unlink(missing_ok=True)
    aside.symlink_to(newest.name)
    aside.replace(latest)
    flush_folder(newest.parent)
