"""The training form of the model without its numbers: every weight and table a fake tensor, for plans of memory.

A fake tensor (torch._subclasses.fake_tensor) has a shape, a dtype and a device, and no storage: the full model takes
no memory, and a training step of it goes through the very code that trains. No weights, no tokenizer, no GPU needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from voxtrain.model.upstream import VoxCPM2Model, absent_vae, build_model


def outline(
    architecture: Mapping[str, Any], adapter_config: Mapping[str, Any] | None, dtype: torch.dtype, fake: FakeTensorMode
) -> VoxCPM2Model:
    """The model as `upstream.load_model` leaves it: weights in `dtype`, adapters in fp32, frozen as the tuning says.

    adapter_config: see LoraTuning.adapter_config; None under full fine-tuning.
    """
    lora, plain = (dict(adapter_config) if adapter_config else None), dict(architecture)
    with torch.device("meta"):
        model = build_model(plain, None, absent_vae(plain), lora)
    del model.audio_vae
    model.base_lm.kv_cache = model.residual_lm.kv_cache = None
    with fake:
        for module in model.modules():
            for name, weight in list(module._parameters.items()):
                if weight is not None:
                    adapter = "lora_" in name
                    made = torch.empty(weight.shape, dtype=torch.float32 if adapter else dtype)
                    module._parameters[name] = torch.nn.Parameter(made, requires_grad=adapter or lora is None)
            for name, table in list(module._buffers.items()):
                if table is not None:
                    module._buffers[name] = torch.empty(table.shape, dtype=table.dtype)
    return model
