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
class LatentConfig:
    """Latent attention: sizes of what queries (None: nothing) and keys are squeezed to, and of a head's parts."""

    q_rank: int | None
    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    interleaved: bool  # pairs to be rotated lie side by side in the checkpoint


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts, from layer `first_layer` on."""

    num: int
    num_chosen: int
    num_shared: int
    num_groups: int
    num_chosen_groups: int
    intermediate_size: int
    scale: float
    normalised: bool
    first_layer: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder's shape. `windows[i]` is the number of keys layer i sees (its own included), None for all.

    With `latent`, keys are their own values: num_kv_heads (1) and head_dim are those of what is cached.
    """

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
    attention_scale: float | None = None  # of scores; None = head_dim ** -0.5
    latent: LatentConfig | None = None
    experts: ExpertsConfig | None = None

    @property
    def cached_per_token(self) -> int:
        """Numbers that a layer caches of a token."""
        return (2 if self.latent is None else 1) * self.num_kv_heads * self.head_dim


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
