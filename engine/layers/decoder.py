"""The pre-norm decoder that all dense families share: embedding, layers, final norm, output head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from ...kernels.attention.interface import AttentionBackend
from ...kernels.interface import Ops
from ..batch import ForwardBatch, PagePlaces
from ..models.config import ModelConfig
from ..parallel.shard import Shard, whole
from .parts import LayerParts, Weights
from .vocab import VocabParallelEmbedding, VocabParallelHead, vocab_part


class AttentionBlock(Protocol):
    def __call__(
        self, x: torch.Tensor, batch: ForwardBatch, wanted: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size), or (R, hidden_size) of the `wanted` tokens alone."""

    def write(self, x: torch.Tensor, batch: ForwardBatch, places: PagePlaces) -> None:
        """What is cached of x (T, hidden_size) goes to its `places`, and nothing attends."""


class DecoderLayer:
    """x + attention(norm(x)), then x + mlp(norm(x)); the sum is kept apart as `residual` until the next norm."""

    def __init__(
        self, parts: LayerParts, *, attention: AttentionBlock, mlp: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        hidden = (parts.config.hidden_size,)
        self.ops = parts.ops
        self.eps = parts.config.rms_norm_eps
        self.attention = attention
        self.mlp = mlp
        self.tap: torch.Tensor | None = None  # (most tokens, hidden_size): gets the sum that enters the layer
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
        if self.tap is not None:
            self.ops.copy_rows(residual, self.tap[: len(residual)])
        x = self.attention(x, batch, wanted)
        if wanted is not None:
            residual = residual.index_select(0, wanted)
        x, residual = self.ops.add_rms_norm(x, residual, self.mlp_norm, self.eps)
        return self.mlp(x), residual

    def write(self, x: torch.Tensor, batch: ForwardBatch, places: PagePlaces) -> None:
        """The keys and values of x (T, hidden_size), as those of the first layer, and nothing else."""
        self.attention.write(self.ops.rms_norm(x, self.attention_norm, self.eps), batch, places)


class Decoder(ABC):
    """A family is this class with its own `layer`. A `shard` of it has some of the layers, or a part of each."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        attention: Sequence[AttentionBackend],  # one per KV group
        layer_groups: Sequence[int],  # KV group of each layer of the shard
        cos_sin: torch.Tensor,
        shard: Shard | None = None,  # None: all of the model
    ) -> None:
        self.config = config
        self.ops = ops
        self.shard = shard = shard or whole(config)
        tied = config.head == "lm" and config.tie_word_embeddings
        table, own = (config.vocab_size, config.hidden_size), vocab_part(config.vocab_size, shard)
        if shard.first or (shard.last and tied):
            self.embedding = embedding = weights.tensor("model.embed_tokens.weight", table, own)
        self.embed: Callable[[torch.Tensor], torch.Tensor] | None = None
        if shard.first:
            self.embed = partial(ops.embedding, embedding)
            if own is not None:
                self.embed = VocabParallelEmbedding(ops, embedding, own, shard.tensor)
        self.layers = [
            self.layer(
                LayerParts(
                    config=config,
                    index=index,
                    name=f"model.layers.{number}",
                    weights=weights,
                    ops=ops,
                    attention=attention[group],
                    cos_sin=cos_sin,
                    shard=shard,
                )
            )
            for index, (number, group) in enumerate(zip(shard.layers, layer_groups, strict=True))
        ]
        self.head: Callable[[torch.Tensor], torch.Tensor] | None = None
        if not shard.last:
            return
        self.norm = weights.tensor("model.norm.weight", (config.hidden_size,))
        self.tap: torch.Tensor | None = None  # as a layer's: gets the sum that leaves the last one
        match config.head:
            case "lm":
                product = ops.linear(
                    embedding if tied else weights.tensor("lm_head.weight", table, own), is_head=True
                )
                self.head = (
                    product if own is None else VocabParallelHead(product, config.vocab_size, shard.tensor)
                )
            case "classify":
                shape = (config.num_labels, config.hidden_size)
                self.head = ops.linear(weights.tensor("score.weight", shape), is_head=True)

    @abstractmethod
    def layer(self, parts: LayerParts) -> DecoderLayer:
        """One layer of the family."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """(T, hidden_size) after the final norm, (R, hidden_size) where the batch names the tokens that are wanted;
        keys and values of all tokens are in the pages. A shard without the last layer hands its states to the next."""
        shard = self.shard
        if self.embed is not None:
            x = self.embed(batch.tokens)
        else:
            assert shard.pipe is not None
            x = shard.pipe.receive(len(batch.tokens))
        residual = None
        for layer in self.layers[:-1]:
            x, residual = layer(x, residual, batch)
        x, residual = self.layers[-1](x, residual, batch, batch.wanted if shard.last else None)
        if not shard.last:
            assert shard.pipe is not None
            return shard.pipe.send(residual.add_(x))
        x, residual = self.ops.add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)
        if self.tap is not None:
            self.ops.copy_rows(residual, self.tap[: len(residual)])
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, hidden_size) -> (R, vocab_size), or (R, num_labels) with a head that classifies. Of ranks that share the
        vocabulary, all call this, and the first gets it."""
        assert self.head is not None, "a model without a head has no logits"
        return self.head(hidden)
