"""How a checkpoint's config.json is read into a `ModelConfig`, whatever its spelling; clear errors where it cannot be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigurationError
from .models.config import ExpertsConfig, LatentConfig, ModelConfig, RopeConfig
from .models.registry import FAMILIES, HEADS

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
DTYPES = ("float32", "bfloat16", "float16")

T = TypeVar("T")


def read_model_config(model_dir: str | Path, hf_overrides: Mapping[str, Any] | None = None) -> ModelConfig:
    """The decoder that `model_dir`/config.json describes, with `hf_overrides` laid over it."""
    return parse_model_config(*read_raw_config(model_dir, hf_overrides))


def read_raw_config(
    model_dir: str | Path, hf_overrides: Mapping[str, Any] | None = None
) -> tuple[Mapping[str, Any], str]:
    """`model_dir`/config.json with `hf_overrides` laid over it (key by key, dicts replaced whole), and its path."""
    path = Path(model_dir) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist: --model must name a Hugging Face model directory"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path} is not a JSON object")
    return {**raw, **(hf_overrides or {})}, str(path)


def parse_model_config(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The typed form of a config.json's content. Raises ConfigurationError naming the key and `where`."""
    fields = Fields(raw, where)
    architecture = supported_architecture(raw, where)
    if architecture not in FAMILIES:
        raise ConfigurationError(f"{where}: {architecture} is an encoder, a decoder is needed here")
    refuse_quantised(raw, where)
    activation = fields.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise ConfigurationError(f"{where}: hidden_act {activation!r} is not supported: silu is")
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ConfigurationError(
            f"{where}: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    head_dim = fields.size("head_dim", FAMILIES[architecture].default_head_dim or hidden_size // num_heads)
    num_layers, max_positions = fields.size("num_hidden_layers"), fields.size("max_position_embeddings")
    rope = parse_rope(fields, max_positions)
    head = HEADS[architecture]
    config = ModelConfig(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_bias=fields.get("attention_bias", bool, False),
        mlp_bias=fields.get("mlp_bias", bool, False),
        tie_word_embeddings=fields.get("tie_word_embeddings", bool, False),
        rope=rope,
        windows=layer_windows(fields, architecture, num_layers),
        max_position_embeddings=max_positions,
        derived_max_model_len=derive_max_model_len(raw, rope, max_positions),
        dtype=checkpoint_dtype(raw, where),
        head=head,
        num_labels=len(read_labels(raw, where)) if head == "classify" else 0,
    )
    return with_latents(config, fields) if "kv_lora_rank" in raw else config


def with_latents(config: ModelConfig, fields: Fields) -> ModelConfig:
    """As DeepSeek-V3 says what its attention caches, and which experts it has."""
    latent = LatentConfig(
        q_rank=fields.size("q_lora_rank") if fields.raw.get("q_lora_rank") is not None else None,
        rank=fields.size("kv_lora_rank"),
        nope_dim=fields.size("qk_nope_head_dim"),
        rope_dim=fields.size("qk_rope_head_dim"),
        value_dim=fields.size("v_head_dim"),
        interleaved=fields.get("rope_interleave", bool, True),
    )
    experts = ExpertsConfig(
        num=fields.size("n_routed_experts"),
        num_chosen=fields.size("num_experts_per_tok"),
        num_shared=fields.size("n_shared_experts"),
        num_groups=fields.size("n_group", 1),
        num_chosen_groups=fields.size("topk_group", 1),
        intermediate_size=fields.size("moe_intermediate_size"),
        scale=fields.number("routed_scaling_factor", 1.0),
        normalised=fields.get("norm_topk_prob", bool, True),
        first_layer=fields.get("first_k_dense_replace", int, 0),
    )
    cached, rope = latent.rope_dim + latent.rank, config.rope
    scale = (latent.nope_dim + latent.rope_dim) ** -0.5
    if rope.kind == "yarn" and rope.mscale_all_dim:
        scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0) ** 2
    return replace(
        config,
        num_kv_heads=1,
        head_dim=cached,
        rope=replace(rope, partial_rotary_factor=latent.rope_dim / cached),
        attention_scale=scale,
        latent=latent,
        experts=experts,
    )


def refuse_quantised(raw: Mapping[str, Any], where: str) -> None:
    """Checkpoints say under one of three names that their weights are no plain numbers any more."""
    for key in ("quantization_config", "compression_config", "quantization"):
        said = raw.get(key)
        if said:
            method = said.get("quant_method") if isinstance(said, dict) else None
            raise ConfigurationError(
                f"{where}: {key} says that the weights are quantised already ({method or 'by an unnamed method'}), "
                "which is not supported: use the checkpoint in bfloat16, float16 or float32, which --quantization "
                "int8 or int4 quantises while it is loaded"
            )


def checkpoint_dtype(raw: Mapping[str, Any], where: str) -> str | None:
    """The number format that the checkpoint says it has."""
    dtype = raw.get("dtype") or raw.get("torch_dtype")
    if dtype is None:
        return None
    if dtype not in DTYPES:
        raise ConfigurationError(f"{where}: dtype {dtype!r} is not supported: one of {', '.join(DTYPES)} is")
    return str(dtype)


def read_labels(raw: Mapping[str, Any], where: str) -> list[str]:
    """The names of the classes in the order of the head's outputs; two unnamed ones where nothing is said."""
    names = raw.get("id2label")
    if names is None:
        count = Fields(raw, where).size("num_labels", 2)
        return [f"LABEL_{index}" for index in range(count)]
    try:
        return [str(names[str(index)]) for index in range(len(names))]
    except (KeyError, TypeError):
        raise ConfigurationError(
            f"{where}: id2label must name every label from 0 on, not {names!r:.200}"
        ) from None


def supported_architecture(raw: Mapping[str, Any], where: str) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in HEADS:
            return str(name)
    said = ", ".join(map(str, names)) or "nothing"
    raise ConfigurationError(
        f"{where}: architectures says {said}, which is not supported: one of {', '.join(sorted(HEADS))} is"
    )


def layer_windows(fields: Fields, architecture: str, num_layers: int) -> tuple[int | None, ...]:
    """Keys each layer sees: by `layer_types` where given, else by the family's own rule."""
    rule = FAMILIES[architecture].window_rule
    if rule == "none" or (rule == "optional" and not fields.get("use_sliding_window", bool, False)):
        return (None,) * num_layers
    if fields.raw.get("sliding_window") is None:
        return (None,) * num_layers
    window = fields.size("sliding_window")
    types = fields.raw.get("layer_types")
    if types is None:
        first = fields.size("max_window_layers", 28) if rule == "optional" else 0
        return tuple(window if i >= first else None for i in range(num_layers))
    if len(types) != num_layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise ConfigurationError(
            f"{fields.where}: layer_types must hold {num_layers} of full_attention or sliding_attention, not {types}"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def parse_rope(fields: Fields, max_positions: int) -> RopeConfig:
    """Both spellings: `rope_theta` + `rope_scaling` (with `type` or `rope_type`), and `rope_parameters`."""
    raw, where = fields.raw, fields.where
    merged: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise ConfigurationError(f"{where}: {key} must be an object, not {value!r}")
        merged.update(value or {})
    if any(isinstance(value, dict) for value in merged.values()):
        raise ConfigurationError(
            f"{where}: rope_parameters that differ between kinds of layers are not supported"
        )
    rope = Fields(merged, f"{where}: rope parameters")
    kind = merged.get("rope_type") or merged.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise ConfigurationError(
            f"{where}: rope_type {kind!r} is not supported: one of {', '.join(ROPE_KINDS)} is"
        )
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    partial = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if kind == "default":
        return RopeConfig("default", theta, partial_rotary_factor=partial)
    original = raw.get("original_max_position_embeddings") or merged.get("original_max_position_embeddings")
    original = int(original or max_positions)
    factor = rope.number("factor", max_positions / original if kind == "yarn" else None)
    if factor < 1.0:
        raise ConfigurationError(f"{where}: rope factor {factor} must be at least 1")
    return RopeConfig(
        kind=kind,
        theta=theta,
        factor=factor,
        original_max_position_embeddings=original,
        partial_rotary_factor=partial,
        low_freq_factor=rope.number("low_freq_factor", 1.0),
        high_freq_factor=rope.number("high_freq_factor", 4.0),
        attention_factor=rope.optional_number("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.get("truncate", bool, True),
    )


def derive_max_model_len(raw: Mapping[str, Any], rope: RopeConfig, max_positions: int) -> int:
    """Context the model can take: linear and dynamic stretch max_position_embeddings by `factor`.

    llama3 and yarn configurations usually state the stretched length already; a yarn one that states the original
    length beside it gets original x factor where that is more.
    """
    if rope.kind in ("linear", "dynamic"):
        return int(max_positions * rope.factor)
    if rope.kind == "yarn":
        return max(max_positions, int(rope.original_max_position_embeddings * rope.factor))
    return max_positions


def context_length(config: ModelConfig, asked: int | None) -> int:
    """The context to serve: `asked`, or all the model was made for. Raises when it was made for less."""
    if asked is None:
        return config.derived_max_model_len
    if asked < 1:
        raise ConfigurationError(f"--max-model-len {asked} must be at least 1")
    if asked > config.derived_max_model_len:
        raise ConfigurationError(
            f"--max-model-len {asked} is more than the {config.derived_max_model_len} positions this model was "
            "made for: lower it, or stretch the model with --hf-overrides, e.g. "
            '\'{"rope_scaling": {"rope_type": "yarn", "factor": 2.0, '
            f'"original_max_position_embeddings": {config.max_position_embeddings}}}}}\''
        )
    return asked


class Fields:
    """Typed reading of a JSON object; `where` starts every complaint."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def get(self, key: str, kind: type[T], default: T) -> T:
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise ConfigurationError(f"{self.where}: {key} must be {kind.__name__}, not {value!r}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; required when there is no default."""
        value = self.raw.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{self.where}: {key} must be a positive integer, not {value!r}")
        return value

    def number(self, key: str, default: float | None) -> float:
        """A number; required when there is no default."""
        value = self.raw.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigurationError(f"{self.where}: {key} must be a number, not {value!r}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        return None if self.raw.get(key) is None else self.number(key, None)
