"""AdamW in one pass over fp32 weights on a CPU, and by row where a gradient has rows of zeros alone.

A step's texts use a few hundred of the 73,448 rows of the embedding, half of a small model's weights. What AdamW does
to a row that no text has used so far is weight decay alone, since its moments are zero: only rows with moments are
read, updated and written. The result does not depend on which rows those are, so that a resumed run stays bit-equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RowAdamW(torch.optim.AdamW):
    """torch's fused AdamW, which takes row-sparse gradients too; its state has torch's names and shapes."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        self._used: dict[Tensor, Tensor] = {}  # by parameter: places of the rows whose moments are not zero, in order
        self.grad_scale: Tensor | None = None  # torch's name for what its fused update divides gradients by

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state: rows that have moments are found again at the next step."""
        super().load_state_dict(state_dict)
        self._used.clear()

    def clip_next(self, divisor: Tensor) -> None:
        """Have the next step divide all gradients by `divisor` (`clip_divisor`), in the pass that it makes anyway."""
        self.grad_scale = None if not divisor.is_cuda and float(divisor) == 1.0 else divisor

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient, after `closure` where there is one."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        by_row = [
            (group, parameter, parameter.grad)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        for _, parameter, _ in by_row:
            parameter.grad = None
        super().step()
        for group, parameter, gradient in by_row:
            self._update_rows(group, parameter, gradient.coalesce())
            parameter.grad = gradient
        self.grad_scale = None

    def _update_rows(self, group: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        moments = state["exp_avg"], state["exp_avg_sq"]
        used = self._used.get(parameter)
        if used is None:
            used = torch.cat([(moment != 0).any(dim=1).nonzero()[:, 0] for moment in moments])
        told = gradient.indices()[0]
        rows: Tensor = torch.unique(torch.cat((used, told)))
        gradients = torch.zeros(len(rows), *parameter.shape[1:])
        values = gradient.values()
        gradients[torch.searchsorted(rows, told)] = values if self.grad_scale is None else values / self.grad_scale
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        held = [tensor.index_select(0, rows) for tensor in (parameter, *moments)]
        _update(group, held, gradients, state["step"])
        for tensor, part in zip((parameter, *moments), held, strict=True):
            tensor.index_copy_(0, rows, part)
        self._used[parameter] = rows[((held[1] != 0) | (held[2] != 0)).any(dim=1)]


def _update(group: dict[str, Any], held: list[Tensor], gradients: Tensor, step: Tensor) -> None:
    """AdamW without weight decay on weights and both moments, in place, by torch's own kernel."""
    weights, first, second = held
    torch._fused_adamw_(
        [weights],
        [gradients],
        [first],
        [second],
        [],
        [step],
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=0.0,
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
