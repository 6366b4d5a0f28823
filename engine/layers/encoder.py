"""The post-norm encoder that the BERT families share: embeddings, layers that attend in both directions, a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ...kernels.attention.bidirectional import BidirectionalAttention
from ...kernels.interface import Ops
from ..models.config import EncoderConfig
from .parts import Weights

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(slots=True)
class EncoderBatch:
    """Whole prompts one after the other. The attention back end has taken in their lengths before the pass starts."""

    tokens: torch.Tensor  # (T,) int32
    positions: torch.Tensor  # (T,) int32, from 0 in every prompt
    token_types: torch.Tensor | None  # (T,) int32; None: all 0


class LayerNorm:
    def __init__(self, config: EncoderConfig, weights: Weights, name: str) -> None:
        self.shape = (config.hidden_size,)
        self.weight = weights.tensor(f"{name}.weight", self.shape)
        self.bias = weights.tensor(f"{name}.bias", self.shape)
        self.eps = config.layer_norm_eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size)."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class EncoderLayer:
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(
        self, config: EncoderConfig, weights: Weights, ops: Ops, attention: BidirectionalAttention, name: str
    ) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size

        def linear(part: str, out_features: int, in_features: int) -> Callable[[torch.Tensor], torch.Tensor]:
            return ops.linear(
                weights.tensor(f"{name}.{part}.weight", (out_features, in_features)),
                weights.tensor(f"{name}.{part}.bias", (out_features,)),
            )

        self.heads = config.num_heads
        self.backend = attention
        self.activation = ACTIVATIONS[config.activation]
        names = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        self.qkv = ops.linear(
            weights.stacked([f"{part}.weight" for part in names], [(hidden, hidden)] * 3),
            weights.stacked([f"{part}.bias" for part in names], [(hidden,)] * 3),
        )
        self.attended = linear("attention.output.dense", hidden, hidden)
        self.attention_norm = LayerNorm(config, weights, f"{name}.attention.output.LayerNorm")
        self.up = linear("intermediate.dense", inner, hidden)
        self.down = linear("output.dense", hidden, inner)
        self.mlp_norm = LayerNorm(config, weights, f"{name}.output.LayerNorm")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size)."""
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.heads, -1).unbind(1)
        x = self.attention_norm(x + self.attended(self.backend.run(q, k, v).flatten(1)))
        return self.mlp_norm(x + self.down(self.activation(self.up(x))))


class Encoder(ABC):
    """A family is this class with its names and its classification head. `body` is the prefix of all but the head."""

    body: str

    def __init__(
        self, config: EncoderConfig, weights: Weights, ops: Ops, attention: BidirectionalAttention
    ) -> None:
        self.config = config
        name, hidden = f"{self.body}.embeddings", config.hidden_size
        self.words = weights.tensor(f"{name}.word_embeddings.weight", (config.vocab_size, hidden))
        self.positions = weights.tensor(
            f"{name}.position_embeddings.weight", (config.max_position_embeddings, hidden)
        )
        self.types = weights.tensor(f"{name}.token_type_embeddings.weight", (config.type_vocab_size, hidden))
        self.norm = LayerNorm(config, weights, f"{name}.LayerNorm")
        self.layers = [
            EncoderLayer(config, weights, ops, attention, f"{self.body}.encoder.layer.{index}")
            for index in range(config.num_layers)
        ]
        self.head = self.classifier(weights, ops) if config.head == "classify" else None

    @abstractmethod
    def classifier(self, weights: Weights, ops: Ops) -> Callable[[torch.Tensor], torch.Tensor]:
        """The head: (R, hidden_size), the states of the prompts' first tokens, -> (R, num_labels)."""

    def forward(self, batch: EncoderBatch) -> torch.Tensor:
        """(T, hidden_size) after the last layer."""
        x = F.embedding(batch.tokens, self.words)
        x = x + F.embedding(batch.positions + self.config.first_position, self.positions)
        if batch.token_types is None:
            x = x + self.types[0]
        else:
            x = x + F.embedding(batch.token_types, self.types)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(R, hidden_size), the states of the prompts' first tokens, -> (R, num_labels)."""
        assert self.head is not None, "a model without a head has no logits"
        return self.head(states)
