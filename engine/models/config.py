"""What a model is built from: a decoder's sizes, rope, windows and context, or an encoder's, as one typed value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

# What follows the last layer: logits over the vocabulary, nothing (the states are the result), or scores of labels.
Head: TypeAlias = Literal["lm", "none", "classify"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding parameters; `layers/rope.py` turns them into a table. `factor` is 1 for `default`."""

    kind: str
    theta: float
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    partial_rotary_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder's shape. `windows[i]` is the number of keys layer i sees (its own included), None for all."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    rope: RopeConfig
    windows: tuple[int | None, ...]
    max_position_embeddings: int
    derived_max_model_len: int
    dtype: str | None  # of the checkpoint, None when it does not say
    head: Head = "lm"
    num_labels: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The shape of a BERT-like encoder. The first token of a prompt is at position `first_position`."""

    architecture: str
    head: Head
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    activation: str
    layer_norm_eps: float
    type_vocab_size: int
    max_position_embeddings: int
    first_position: int
    derived_max_model_len: int
    num_labels: int
    dtype: str | None  # of the checkpoint, None when it does not say
