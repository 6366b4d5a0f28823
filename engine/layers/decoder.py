"""The pre-norm decoder that all dense families share: embedding, layers, final norm, output head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from ...kernels.attention.interface import AttentionBackend
from ...kernels.interface import Linear, Ops
from ..batch import ForwardBatch
from ..models.config import ModelConfig
from .attention import Attention
from .mlp import GatedMLP
from .parts import LayerParts, Weights


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x)); the sum is kept apart as `residual` until the next norm."""

    def __init__(self, parts: LayerParts, *, attention: Attention, mlp: GatedMLP) -> None:
        hidden = (parts.config.hidden_size,)
        self.ops = parts.ops
        self.eps = parts.config.rms_norm_eps
        self.attention = attention
        self.mlp = mlp
        self.attention_norm = parts.weights.tensor(f"{parts.name}.input_layernorm.weight", hidden)
        self.mlp_norm = parts.weights.tensor(f"{parts.name}.post_attention_layernorm.weight", hidden)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        batch: ForwardBatch,
        wanted: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual (T, hidden_size): what is still to be added and the sum so far, of the `wanted` tokens alone if
        that is given."""
        if residual is None:
            residual = x
            x = self.ops.rms_norm(x, self.attention_norm, self.eps)
        else:
            x, residual = self.ops.add_rms_norm(x, residual, self.attention_norm, self.eps)
        x = self.attention(x, batch, wanted)
        if wanted is not None:
            residual = residual.index_select(0, wanted)
        x, residual = self.ops.add_rms_norm(x, residual, self.mlp_norm, self.eps)
        return self.mlp(x), residual


class Decoder(ABC):
    """A family is this class with its own `layer`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        attention: Sequence[AttentionBackend],  # one per KV group
        layer_groups: Sequence[int],  # KV group of each layer
        cos_sin: torch.Tensor,
    ) -> None:
        self.config = config
        self.ops = ops
        table = (config.vocab_size, config.hidden_size)
        self.embedding = weights.tensor("model.embed_tokens.weight", table)
        self.layers = [
            self.layer(
                LayerParts(
                    config=config,
                    index=index,
                    name=f"model.layers.{index}",
                    weights=weights,
                    ops=ops,
                    attention=attention[group],
                    cos_sin=cos_sin,
                )
            )
            for index, group in enumerate(layer_groups)
        ]
        self.norm = weights.tensor("model.norm.weight", (config.hidden_size,))
        self.head: Linear | None = None
        match config.head:
            case "lm":
                tied = config.tie_word_embeddings
                head = self.embedding if tied else weights.tensor("lm_head.weight", table)
                self.head = ops.linear(head, is_head=True)
            case "classify":
                shape = (config.num_labels, config.hidden_size)
                self.head = ops.linear(weights.tensor("score.weight", shape), is_head=True)

    @abstractmethod
    def layer(self, parts: LayerParts) -> DecoderLayer:
        """One layer of the family."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """(T, hidden_size) after the final norm, (R, hidden_size) where the batch names the tokens that are wanted;
        keys and values of all tokens are in the pages."""
        x = self.ops.embedding(self.embedding, batch.tokens)
        residual = None
        for layer in self.layers[:-1]:
            x, residual = layer(x, residual, batch)
        x, residual = self.layers[-1](x, residual, batch, batch.wanted)
        x, _ = self.ops.add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, hidden_size) -> (R, vocab_size), or (R, num_labels) with a head that classifies."""
        assert self.head is not None, "a model without a head has no logits"
        return self.head(hidden)
