"""Putting the weights of a numbered checkpoint into a model that is in memory already, strictly.

One model serves all checkpoints: tensors are copied one at a time, and every name and shape must fit. What a file
holds is compared with the checksum in step.json first, so that a flipped bit is not judged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from voxtrain.checkpoint.digests import sha256_of
from voxtrain.checkpoint.facts import read_facts
from voxtrain.checkpoint.writer import MODEL, STEP
from voxtrain.durable import read_json
from voxtrain.fault import Fault, InputError
from voxtrain.model.adapter_files import config_file, files_in, read_adapter_config
from voxtrain.model.tuning import LoraTuning
from voxtrain.model.upstream import VoxCPM2Model, adapters, load_adapter, load_model
from voxtrain.model.weights import check_names, open_weights
from voxtrain.run_folder import RunFolder

REMEDY = "restore the folder from a copy; the other checkpoints are not touched by this"


def written_checksums(folder: Path) -> dict[str, str]:
    """The sha256 that each file of a checkpoint had when it was written. Raises InputError when step.json is broken."""
    try:
        known = {str(name): str(digest) for name, digest in read_json(folder / STEP)["sha256"].items()}
        return known | {name: known[name] for name in [weights_file(folder).name]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(Fault(str(folder / STEP), f"it names no checksum of the weights: {error}", REMEDY)) from None


def written_checksum(folder: Path) -> str:
    """The sha256 that a checkpoint's weights had when they were written. Raises InputError when step.json is broken."""
    return written_checksums(folder)[weights_file(folder).name]


def check_content(folder: Path) -> None:
    """Raise InputError when a file is no longer what was written, OSError when one is gone.

    Reads every byte, at 1.8 GB/s of one core where the disk gives as much: 2.8 s for 4.6 GiB. A file that was checked
    and has not changed since is not read again.
    """
    wrong = [name for name, digest in written_checksums(folder).items() if sha256_of(folder / name) != digest]
    if wrong:
        what = "its content is not what was written (the checksum differs)"
        raise InputError(*(Fault(str(folder / name), what, REMEDY) for name in wrong))


def check_belongs(run: RunFolder, step: int) -> None:
    """Raise InputError when the folder of `step` holds another step, or a checkpoint of another run.

    Two models of one shape cannot be told apart by their tensors. What the run learns under is known from its newest
    state; where that cannot be read, the step alone is compared.
    """
    folder = run.checkpoint(step)
    try:
        known = dict(read_json(folder / STEP))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(Fault(str(folder / STEP), f"it cannot be read: {error}", REMEDY)) from None
    wrong = [] if known.get("step") == step else [f"it holds step {known.get('step')}"]
    with suppress(InputError):
        facts = read_facts(run)
        if known.get("data", facts.data) != facts.data:
            wrong.append("it learnt from other rows than this run")
        if (
            known.get("fingerprint_without_course", facts.fingerprint_without_course)
            != facts.fingerprint_without_course
        ):
            wrong.append("it was saved under other settings than those of this run")
    if wrong:
        raise InputError(Fault(str(folder), f"it is the checkpoint of another model: {'; '.join(wrong)}", REMEDY))


def weights_file(folder: Path) -> Path:
    """The adapter of a LoRA checkpoint, the whole model's weights of another."""
    adapter = files_in(folder)
    return folder / (MODEL if adapter is None else adapter.weights)


def first_model(
    folder: Path, base: Callable[[], Path], lora: LoraTuning | None, device: torch.device, dtype: torch.dtype
) -> VoxCPM2Model:
    """A model in training form that `put_weights` can fill from any checkpoint of the run; `folder` is one of them."""
    model = load_model(folder if lora is None else base(), lora, device, dtype)
    for parameter in adapters(model).values():
        parameter.data = parameter.data.to(dtype)  # without autocast both factors of a product need one dtype
    return model.eval().requires_grad_(False)


def put_weights(model: VoxCPM2Model, folder: Path, lora: LoraTuning | None) -> None:
    """Make the model, in training or speaking form, that of a checkpoint of the same run.

    Raises InputError or OSError when the checkpoint is not whole or does not fit; the model must then not be used
    before another checkpoint was put into it.
    """
    check_content(folder)
    if lora is not None:
        check_adapter(folder, lora)
        load_adapter(model, folder)
        return
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("audio_vae.")}
    with open_weights(folder / MODEL) as file, torch.no_grad():
        check_names(file, {name: tuple(tensor.shape) for name, tensor in own.items()})
        for name, tensor in own.items():
            file.fill(name, tensor)


def check_adapter(folder: Path, lora: LoraTuning) -> None:
    """Raise InputError unless the adapter was made with the run's own tuning."""
    path = config_file(folder)
    made_with, wanted = read_adapter_config(folder), lora.adapter_config()
    other = [
        f"{key}: {made_with.get(key)}, not {value}" for key, value in wanted.items() if made_with.get(key) != value
    ]
    if other:
        raise InputError(Fault(str(path), f"it is another adapter ({'; '.join(other)})", REMEDY))
