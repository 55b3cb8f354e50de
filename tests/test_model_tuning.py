"""What learns: settings that cannot work are refused, with a reason."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from voxtrain.model.tuning import FullTuning, LoraTuning

GOOD = {
    "rank": 32,
    "alpha": 32,
    "dropout": 0.0,
    "lm": True,
    "dit": True,
    "projections": False,
    "locenc": False,
    "stop_head": False,
    "lm_targets": ["q_proj"],
    "dit_targets": ["q_proj"],
    "projection_targets": [],
    "locenc_targets": [],
}


def test_config_is_upstreams() -> None:
    from voxtrain.model.upstream import LoRAConfig

    config = LoraTuning.model_validate(GOOD).lora_config()
    assert config.keys() == LoRAConfig.model_fields.keys()
    assert LoRAConfig(**config).model_dump() == config
    assert FullTuning().lora_config() is None


def test_what_upstream_cannot_name_stands_apart() -> None:
    beyond = LoraTuning.model_validate({**GOOD, "locenc": True, "locenc_targets": ["v_proj"], "stop_head": True})
    assert beyond.lora_config() == LoraTuning.model_validate(GOOD).lora_config()
    assert beyond.adapter_config() == {**beyond.lora_config(), "locenc_targets": ["v_proj"], "stop_head": True}
    off = LoraTuning.model_validate({**GOOD, "locenc_targets": ["v_proj"]})
    assert off.adapter_config() == {**off.lora_config(), "locenc_targets": [], "stop_head": False}
    assert LoraTuning.model_validate({**GOOD, "lm": False, "dit": False, "stop_head": True}).stop_head


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dropout": 0.1}, "dropout would draw outside"),
        ({"dropout": -0.1}, "greater than or equal to 0"),
        ({"rank": 0}, "greater than 0"),
        ({"lm": False, "dit": False}, "no adapter is placed anywhere"),
        ({"lm_targets": [], "dit_targets": []}, "no adapter is placed anywhere"),
        ({"lm": False, "dit": False, "locenc": True}, "no adapter is placed anywhere"),
        ({"locenc": True, "locenc_targets": ["in_proj"]}, "q_proj"),
        ({"lm_targets": ["query"]}, "q_proj"),
        ({"projection_targets": ["stop_proj"]}, "enc_to_lm_proj"),
        ({"use_rslora": True}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        LoraTuning.model_validate({**GOOD, **change})
