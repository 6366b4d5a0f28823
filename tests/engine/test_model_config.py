"""A config.json means the same in every spelling, and one that cannot be served says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from penstock.engine.errors import ConfigurationError
from penstock.engine.model_config import context_length, parse_model_config, read_model_config
from penstock.engine.models.registry import FAMILIES

RAW = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16}


def test_old_and_new_rope_spellings_are_one() -> None:
    new = parse_model_config(
        RAW | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **YARN}, "dtype": "bfloat16"}
    )
    old = parse_model_config(
        RAW | {"rope_theta": 5e5, "rope_scaling": {"type": "yarn", **YARN}, "torch_dtype": "bfloat16"}
    )
    assert new == old
    assert (new.rope.kind, new.rope.theta, new.rope.factor, new.rope.beta_fast) == ("yarn", 5e5, 4.0, 16.0)
    assert (
        parse_model_config(RAW | {"rope_theta": 1e6}).rope
        == parse_model_config(
            RAW | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": None}
        ).rope
    )


def test_sizes_that_may_be_left_out() -> None:
    config = parse_model_config(RAW)
    assert (config.num_kv_heads, config.head_dim, config.rope.theta, config.dtype) == (4, 16, 10_000.0, None)
    assert parse_model_config(RAW | {"architectures": ["Qwen3ForCausalLM"]}).head_dim == 128


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        (None, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "dynamic", "factor": 3.0}, 12288),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
    ],
)
def test_the_context_length_follows_from_rope(rope: dict | None, length: int) -> None:
    config = parse_model_config(RAW | {"rope_scaling": rope})
    assert context_length(config, None) == length
    assert context_length(config, 100) == 100
    with pytest.raises(
        ConfigurationError, match=f"--max-model-len {length + 1} is more than the {length} positions"
    ):
        context_length(config, length + 1)


@pytest.mark.parametrize(
    ("architecture", "more", "windows"),
    [
        ("LlamaForCausalLM", {"sliding_window": 8}, (None,) * 4),
        ("MistralForCausalLM", {"sliding_window": 8}, (8,) * 4),
        ("MistralForCausalLM", {"sliding_window": None}, (None,) * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 8, "max_window_layers": 1}, (None,) * 4),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 8, "max_window_layers": 3, "use_sliding_window": True},
            (None, None, None, 8),
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            (8, None, 8, None),
        ),
    ],
)
def test_windows_of_layers(architecture: str, more: dict, windows: tuple) -> None:
    assert parse_model_config(RAW | {"architectures": [architecture], **more}).windows == windows


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RAW))
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}
    config = read_model_config(tmp_path, {"rope_scaling": rope, "vocab_size": 50})
    assert (config.vocab_size, config.derived_max_model_len) == (50, 8192)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "architectures says GPT2LMHeadModel, which is not supported",
        ),
        ({"architectures": None}, "architectures says nothing"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": None}, "hidden_size must be a positive integer, not None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"vocab_size": "many"}, "vocab_size must be a positive integer, not 'many'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor must be a number, not None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope factor 0.5 must be at least 1"),
        ({"rope_scaling": 7}, "rope_scaling must be an object, not 7"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ between kinds of layers"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised already \(awq\).*--quantization int8"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config says .* already \(fp8\)"),
        ({"compression_config": {"format": "int-quantized"}}, "compression_config says that the weights are"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization says that the weights are quantised"),
        ({"torch_dtype": "int8"}, "dtype 'int8' is not supported"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be bool, not 'yes'"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 4, "layer_types": ["full_attention"]},
            "layer_types must hold 4",
        ),
    ],
)
def test_what_cannot_be_served_is_named(change: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_model_config({k: v for k, v in (RAW | change).items() if v is not None or k in change})


def test_an_unsupported_architecture_lists_the_supported_ones() -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_model_config(RAW | {"architectures": ["GPT2LMHeadModel"]})
    assert all(name in str(error.value) for name in FAMILIES)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), ("{", "cannot be read"), ("[]", "not a JSON")]
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=said):
        read_model_config(tmp_path)
