"""The parameters of adapters in a model: their first values, and putting saved ones in, strictly."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from voxtrain.model.adapter_files import UPSTREAMS, files_in
from voxtrain.model.weights import check_names, open_weights


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters under upstream's names; empty without LoRA."""
    return {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}


def start_adapters(model: nn.Module, seed: int) -> None:
    """lora.py: LoRALinear draws A by kaiming_uniform with a = sqrt(5), which is uniform within 1 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if "lora_A" in own:
            a = torch.empty(own["lora_A"].shape).uniform_(-1, 1, generator=generator)
            module.lora_A = nn.Parameter(a / a.shape[1] ** 0.5)
            module.lora_B = nn.Parameter(torch.zeros(own["lora_B"].shape))


def load_adapter(model: nn.Module, adapter: Path) -> None:
    """Put the weights of a LoRA folder into a model that has such adapters. Raises InputError unless all names fit."""
    own, files = adapters(model), files_in(adapter) or UPSTREAMS
    with open_weights(adapter / files.weights) as file, torch.no_grad():
        check_names(file, {name: tuple(parameter.shape) for name, parameter in own.items()})
        for name, parameter in own.items():
            parameter.copy_(file.read(name))
