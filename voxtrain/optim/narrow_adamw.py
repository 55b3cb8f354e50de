"""AdamW for weights that are too narrow to be added to: updates are made in fp32, and none is lost.

torch's and bitsandbytes' optimizers add an update to a bf16 weight in bf16, which at a learning rate of 1e-5 loses
almost all of them without a word; neither has a remedy. Here every update is that of torch's fused AdamW on fp32
numbers, or of bitsandbytes' 8-bit AdamW on fp32 numbers, and only what becomes of the result differs:

    stochastic  rounded up or down at random, so that the mean is exact; nothing is kept
    kahan       bf16 weight, and in 16 more bits what it lacks: together the fp32 weight, to the last bit
    master      an fp32 weight in host memory, where the moments are too; the card has a copy in its own dtype

A tensor is worked on in pieces, so that the card never holds an fp32 copy of a large one. Bytes moved on the card, a
value: 58 with 8-bit moments and random rounding (12 to widen weight and gradient, 16 in the update, 30 to draw and
round), which is 0.14 s for 2.29 billion values at 936 GB/s; 12 more with fp32 moments, 36 more with `kahan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from voxtrain.data.keyed import philox
from voxtrain.optim import eight_bits
from voxtrain.optim.halves import join, round_at_random, split
from voxtrain.optim.host_gradients import HostGradients

PIECE = 2**22
"""Values worked on at a time: at most 80 MiB of workspace, and few enough launches. A multiple of eight_bits.BLOCK."""
KEEPING = ("stochastic", "kahan", "master")


class NarrowAdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay, its sums in fp32.

    state of a parameter: `step`; the moments `exp_avg`, `exp_avg_sq` (fp32), or `state1`, `state2`, `absmax1`,
    `absmax2` (8 bits); `remainder` (int16, kahan) or `master` (fp32, on the host). All flat, all as plain tensors.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        bits: int,
        keeping: str,
        seed: int,
        gradients_on_host: bool,
    ) -> None:
        """`bits` of a moment: 32 or 8; `keeping`: one of KEEPING; `seed`: of the random rounding.

        gradients_on_host: take gradients off the card as backward makes them; with a master alone.
        Raises ValueError for parameters that are not bf16, unless there is a master.
        """
        super().__init__(list(parameters), {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        if bits not in (8, 32) or keeping not in KEEPING:
            raise ValueError(f"{bits} bits, {keeping}: moments have 8 or 32, and results are kept by one of {KEEPING}")
        self.bits, self.keeping, self.seed = bits, keeping, seed
        others = {p.dtype for p in self._parameters()} - {torch.bfloat16}
        if others and keeping != "master":
            raise ValueError(f"{keeping} rounding is for bf16 weights, not {others}")
        if gradients_on_host and keeping != "master":
            raise ValueError(f"gradients on the host need a master there, not {keeping} rounding")
        self.host_gradients = HostGradients(self._parameters()) if gradients_on_host else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update of every parameter that has a gradient; the result of `closure`."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        number = -1
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                gradient = self.gradient_of(parameter)
                if gradient is not None:
                    self._update(parameter, gradient, number, group)
        return result

    def gradient_of(self, parameter: Tensor) -> Tensor | None:
        """A parameter's gradient, wherever it is."""
        return parameter.grad if self.host_gradients is None else self.host_gradients.of(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those on the host too."""
        super().zero_grad(set_to_none)
        if self.host_gradients is not None:
            self.host_gradients.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put a saved state back, each tensor in its own dtype (torch would cast moments to that of the weights)."""
        super().load_state_dict({**state_dict, "state": {}})
        parameters = list(self._parameters())
        for index, saved in state_dict["state"].items():
            home = self._home(parameters[index])
            moved = {k: v.to(home, copy=True) if isinstance(v, Tensor) else v for k, v in saved.items()}
            self.state[parameters[index]] = moved

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    def _home(self, parameter: Tensor) -> torch.device:
        """Where the state lives, and the update is made."""
        return torch.device("cpu") if self.keeping == "master" else parameter.device

    def _update(self, parameter: torch.nn.Parameter, gradient: Tensor, number: int, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self._begin(parameter))
        state["step"] += 1
        weights, gradients = parameter.detach().view(-1), gradient.reshape(-1)
        draw = self._generator(parameter, number, state["step"]) if self.keeping == "stochastic" else None
        for start in range(0, len(weights), PIECE):
            piece = slice(start, start + PIECE)
            wide = self._wide(weights[piece], state, piece)
            here = gradients[piece].to(wide.device).float()
            if "state1" in state:
                eight_bits.update(wide, here, state, start, state["step"], group)
            else:
                _fp32_update(wide, here, state["exp_avg"][piece], state["exp_avg_sq"][piece], state["step"], group)
            if draw is not None:
                round_at_random(wide, weights[piece], draw)
            elif self.keeping == "kahan":
                split(wide, weights[piece], state["remainder"][piece])
            else:
                weights[piece].copy_(wide.to(weights.dtype))  # narrowed before it goes to the card

    def _wide(self, weights: Tensor, state: dict[str, Any], piece: slice) -> Tensor:
        """The weights of a piece in fp32, to be changed in place: the master itself, else a new tensor."""
        if self.keeping == "master":
            master: Tensor = state["master"][piece]
            return master
        return join(weights, state["remainder"][piece]) if self.keeping == "kahan" else weights.float()

    def _begin(self, parameter: Tensor) -> dict[str, Any]:
        count, home = parameter.numel(), self._home(parameter)
        state: dict[str, Any] = {"step": 0}
        if self.bits == 8 and count >= eight_bits.SMALLEST:
            state |= eight_bits.moments(count, home)
        else:
            state |= {name: torch.zeros(count, device=home) for name in ("exp_avg", "exp_avg_sq")}
        if self.keeping == "kahan":
            state["remainder"] = torch.zeros(count, dtype=torch.int16, device=home)
        elif self.keeping == "master":
            state["master"] = parameter.detach().view(-1).to(home, torch.float32, copy=True)
        return state

    def _generator(self, parameter: Tensor, number: int, step: int) -> torch.Generator:
        """The random numbers of one parameter's update: a function of (seed, its place, the update), of nothing else.

        So a resumed run rounds as the uninterrupted one, and all processes of a data-parallel run round alike.
        """
        key = int(philox("rounding", self.seed, number, step).random_raw()) >> 1
        return torch.Generator(device=parameter.device).manual_seed(key)


def _fp32_update(
    weights: Tensor, gradients: Tensor, mean: Tensor, square: Tensor, step: int, group: dict[str, Any]
) -> None:
    """One update of a piece by torch's fused AdamW, which counts the step itself."""
    beta1, beta2 = group["betas"]
    adamw(
        [weights],
        [gradients],
        [mean],
        [square],
        [],
        [torch.tensor(float(step - 1), device=weights.device)],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
