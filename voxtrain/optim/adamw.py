"""The settings of the config group `optimizer`: AdamW's hyperparameters.

How many bits its state has, and where that lives, is `memory.state`. All parameters form one group, weight decay
included, as upstream trains. torch and bitsandbytes are imported when an optimizer is built.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

from voxtrain.fault import Fault, InputError

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

STATES = ("fp32", "8bit", "paged_8bit")


class AdamW(BaseModel, frozen=True, extra="forbid"):
    """AdamW with decoupled weight decay."""

    lr: Positive
    betas: tuple[Beta, Beta]
    eps: Positive
    weight_decay: NotNegative

    def build(self, parameters: Iterable[torch.nn.Parameter], state: str) -> torch.optim.Optimizer:
        """The optimizer of `parameters`, its state held as `state` (one of STATES) says.

        fp32: torch's. 8bit: bitsandbytes' blockwise state (tensors under 4096 values stay 32-bit). paged_8bit: the
        same in pages that the driver moves to host memory; on the CPU nothing is paged. Raises InputError when
        bitsandbytes cannot be imported.
        """
        import torch

        if state not in STATES:
            raise ValueError(f"{state} is none of {STATES}")
        wanted = list(parameters)
        if state == "fp32":
            # fused: the default on CUDA takes the root of all second moments at once, 8.5 GiB under full fine-tuning
            fused = True if any(parameter.is_cuda for parameter in wanted) else None
            return torch.optim.AdamW(
                wanted, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
            )
        # bitsandbytes tells every user of the CPU, at the first step, what memory.state says already
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        rule = _rule_8bit(paged=state == "paged_8bit")
        built: torch.optim.Optimizer = rule(
            wanted, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        return built


def _rule_8bit(*, paged: bool) -> type:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # the import warns of 4-bit kernels, which training does not use
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except (ImportError, OSError, RuntimeError) as error:
        where = f"memory.state = {'paged_8bit' if paged else '8bit'}"
        remedy = "install bitsandbytes, or set memory.state=fp32"
        raise InputError(Fault(where, f"bitsandbytes cannot be imported: {error}", remedy)) from None
    finally:
        logger.setLevel(level)
    return PagedAdamW8bit if paged else AdamW8bit
