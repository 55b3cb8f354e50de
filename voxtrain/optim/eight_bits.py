"""AdamW's moments in 8 bits: bitsandbytes' blockwise state and its update, and the quiet import of bitsandbytes.

One byte a value beside one fp32 scale for each 256 of them, in bitsandbytes' own dynamic number formats (Dettmers et
al., "8-bit optimizers via block-wise quantization", 2022).
"""

from __future__ import annotations

import logging
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from voxtrain.fault import Fault, InputError

BLOCK = 256
"""Values that share a scale (bitsandbytes' optimizer.py: init_state)."""
SMALLEST = 4096
"""Tensors of fewer values keep fp32 moments (bitsandbytes' min_8bit_size): norms and biases, which are few."""


def bitsandbytes(state: str) -> ModuleType:
    """The package, imported without its remarks on 4-bit kernels. Raises InputError, naming `memory.state`."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import bitsandbytes
        import bitsandbytes.optim.adamw
    except (ImportError, OSError, RuntimeError) as error:
        what, remedy = f"bitsandbytes cannot be imported: {error}", "install bitsandbytes, or set memory.state=fp32"
        raise InputError(Fault(f"memory.state = {state}", what, remedy)) from None
    finally:
        logger.setLevel(level)
    return bitsandbytes


def moments(count: int, device: torch.device) -> dict[str, Tensor]:
    """AdamW's state of `count` values before the first update, under bitsandbytes' names."""
    blocks = -(-count // BLOCK)
    state = {name: torch.zeros(count, dtype=torch.uint8, device=device) for name in ("state1", "state2")}
    return state | {name: torch.zeros(blocks, device=device) for name in ("absmax1", "absmax2")}


def update(
    weights: Tensor, gradients: Tensor, state: dict[str, Tensor], start: int, step: int, group: dict[str, Any]
) -> None:
    """One AdamW update of fp32 `weights` [n] with fp32 `gradients` [n], in place; `state` is that of the whole tensor.

    start: where in the tensor `weights` begins, a multiple of BLOCK. step: the number of this update, from 1.
    """
    end = start + len(weights)
    blocks = slice(start // BLOCK, -(-end // BLOCK))
    signed, unsigned = _formats(weights.device)
    bitsandbytes("8bit").functional.optimizer_update_8bit_blockwise(
        "adam",
        gradients,
        weights,
        state["state1"][start:end],
        state["state2"][start:end],
        *group["betas"],
        0.0,  # beta3 and alpha: another rule's
        0.0,
        group["eps"],
        step,
        group["lr"],
        signed,
        unsigned,
        state["absmax1"][blocks],
        state["absmax2"][blocks],
        group["weight_decay"],
    )


@lru_cache(maxsize=4)
def _formats(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 256 values that a byte can mean, for the first moment and for the second."""
    made = bitsandbytes("8bit").functional.create_dynamic_map
    return made(signed=True).to(device), made(signed=False).to(device)
