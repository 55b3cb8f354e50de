"""The settings of the config group `tuning`: what learns. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, NonNegativeFloat, PositiveInt, field_validator, model_validator

DecoderLinear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ProjectionLinear = Literal["enc_to_lm_proj", "lm_to_dit_proj", "res_to_dit_proj", "fusion_concat_proj"]


class FullTuning(BaseModel, frozen=True, extra="forbid"):
    """Every parameter outside the AudioVAE learns."""

    def lora_config(self) -> None:
        """No adapters."""

    def adapter_config(self) -> None:
        """No adapters."""


class LoraTuning(BaseModel, frozen=True, extra="forbid"):
    """Low-rank adapters learn, and nothing else (upstream: voxcpm2.py, LoRAConfig).

    `locenc` and `stop_head` place adapters where LoRAConfig has no field: what they learn leaves by merging alone.
    """

    rank: PositiveInt
    alpha: PositiveInt
    dropout: NonNegativeFloat
    lm: bool
    dit: bool
    projections: bool
    locenc: bool
    stop_head: bool
    lm_targets: tuple[DecoderLinear, ...]
    dit_targets: tuple[DecoderLinear, ...]
    projection_targets: tuple[ProjectionLinear, ...]
    locenc_targets: tuple[DecoderLinear, ...]

    @field_validator("dropout")
    @classmethod
    def _draws_nothing(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                "dropout would draw outside (seed, place in the order): a resumed run and another cut into "
                "micro-batches would no longer learn the same; set it to 0 and lower rank or lr instead"
            )
        return value

    @model_validator(mode="after")
    def _learns_something(self) -> Self:
        places = (
            (self.lm, self.lm_targets),
            (self.dit, self.dit_targets),
            (self.projections, self.projection_targets),
            (self.locenc, self.locenc_targets),
        )
        if not self.stop_head and not any(wanted and targets for wanted, targets in places):
            raise ValueError("no adapter is placed anywhere: set lm, dit, projections or locenc to true, with targets")
        return self

    def lora_config(self) -> dict[str, Any]:
        """The fields of upstream's LoRAConfig."""
        return {
            "enable_lm": self.lm,
            "enable_dit": self.dit,
            "enable_proj": self.projections,
            "r": self.rank,
            "alpha": self.alpha,
            "dropout": self.dropout,
            "target_modules_lm": list(self.lm_targets),
            "target_modules_dit": list(self.dit_targets),
            "target_proj_modules": list(self.projection_targets),
        }

    def adapter_config(self) -> dict[str, Any]:
        """All adapters: upstream's fields, and beside them the places that upstream cannot name."""
        beyond = {"locenc_targets": list(self.locenc_targets) if self.locenc else [], "stop_head": self.stop_head}
        return {**self.lora_config(), **beyond}
