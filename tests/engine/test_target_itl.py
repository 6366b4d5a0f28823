"""`--target-itl-ms` reaches the scheduler: as given, else as the device's default."""

from __future__ import annotations

import math

import pytest
from penstock.engine.choices import DEFAULT_TARGET_ITL_MS, choose
from penstock.engine.errors import ConfigurationError
from penstock.engine.model_config import parse_model_config
from penstock.scheduler.messages import Device, EngineConfig

RAW = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("given", "chosen"), [(None, DEFAULT_TARGET_ITL_MS["cpu"]), (0.0, 0.0), (42.5, 42.5)]
)
def test_the_target_is_what_was_given_or_the_default_of_the_device(
    given: float | None, chosen: float
) -> None:
    config = EngineConfig(model_dir="", device="cpu", target_itl_ms=given)
    assert choose(config, parse_model_config(RAW)).target_itl_ms == chosen


def test_every_device_has_a_default() -> None:
    devices = set(Device.__args__) - {"auto"}  # type: ignore[attr-defined]
    assert set(DEFAULT_TARGET_ITL_MS) == devices


@pytest.mark.parametrize("target", [-1.0, math.nan, math.inf])
def test_a_target_that_is_none_is_one_line_that_names_it(target: float) -> None:
    with pytest.raises(ConfigurationError, match=r"^--target-itl-ms .*: give a number"):
        choose(EngineConfig(model_dir="", device="cpu", target_itl_ms=target), parse_model_config(RAW))
