"""The settings of the config group `optimizer`: AdamW's hyperparameters.

How many bits its state has, where that lives, and how updates reach bf16 weights is the memory stack's business. All
parameters form one group, weight decay included, as upstream trains. torch and bitsandbytes are imported when an
optimizer is built.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

STATES = ("fp32", "8bit", "paged_8bit", "host", "host_8bit")
ROUNDINGS = ("nearest", "stochastic", "kahan")
GRADIENTS = ("card", "host")


class AdamW(BaseModel, frozen=True, extra="forbid"):
    """AdamW with decoupled weight decay."""

    lr: Positive
    betas: tuple[Beta, Beta]
    eps: Positive
    weight_decay: NotNegative

    def build(
        self, parameters: Iterable[torch.nn.Parameter], state: str, rounding: str, seed: int, gradients: str
    ) -> torch.optim.Optimizer:
        """The optimizer of `parameters`, which all have one dtype.

        state, one of STATES. fp32: torch's fused one, by row where gradients are (row_adamw.py). 8bit: bitsandbytes'
        blockwise state (tensors under 4096 values stay 32-bit). paged_8bit: the same in pages that the driver moves to
        host memory; on the CPU nothing is paged. host, host_8bit: an fp32 master of the weights and its state, of 32 or
        8 bits, in host memory.
        rounding, one of ROUNDINGS, says how updates reach bf16 weights (narrow_adamw.py); `seed` is that of the
        stochastic one. fp32 weights take updates as they are, whatever it says.
        gradients, one of GRADIENTS: where they are added up. host: they leave the card as backward makes them
        (host_gradients.py), for a master that is there too.
        Raises InputError when bitsandbytes cannot be imported, ValueError for what loses the updates of bf16 weights.
        """
        import torch

        if state not in STATES or rounding not in ROUNDINGS or gradients not in GRADIENTS:
            given = f"state {state} with rounding {rounding} and gradients {gradients}"
            raise ValueError(f"{given}: known are {STATES} with {ROUNDINGS} and {GRADIENTS}")
        wanted = list(parameters)
        on_host = state.startswith("host")
        if gradients == "host" and not on_host:
            raise ValueError(f"gradients on the host need their master there, and the state is {state}")
        if on_host or any(parameter.dtype == torch.bfloat16 for parameter in wanted):
            return self._narrow(wanted, state, "master" if on_host else rounding, seed, gradients)
        if state == "fp32":
            from voxtrain.optim.row_adamw import RowAdamW

            # fused: the default on CUDA takes the root of all second moments at once, 8.5 GiB under full fine-tuning
            return RowAdamW(wanted, **self.model_dump())
        return self._bitsandbytes(wanted, state)

    def _narrow(
        self, wanted: list[torch.nn.Parameter], state: str, keeping: str, seed: int, gradients: str
    ) -> torch.optim.Optimizer:
        from voxtrain.optim.eight_bits import bitsandbytes
        from voxtrain.optim.narrow_adamw import KEEPING, NarrowAdamW

        if keeping not in KEEPING or state == "paged_8bit":
            raise ValueError(f"state {state} with rounding {keeping} would lose the updates of bf16 weights")
        if state.endswith("8bit"):
            bitsandbytes(state)  # told now if it is missing, and not in the first step
        return NarrowAdamW(
            wanted,
            **self.model_dump(),
            bits=8 if state.endswith("8bit") else 32,
            keeping=keeping,
            seed=seed,
            gradients_on_host=gradients == "host",
        )

    def _bitsandbytes(self, wanted: list[torch.nn.Parameter], state: str) -> torch.optim.Optimizer:
        from voxtrain.optim.eight_bits import bitsandbytes

        # bitsandbytes tells every user of the CPU, at the first step, what memory.state says already
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        rules = bitsandbytes(state).optim
        rule = rules.PagedAdamW8bit if state == "paged_8bit" else rules.AdamW8bit
        built: torch.optim.Optimizer = rule(wanted, **self.model_dump())
        return built
