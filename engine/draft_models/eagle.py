"""EAGLE heads: one decoder layer that reads the target's states beside each token.

EAGLE-1 and EAGLE-2 (arXiv:2401.15077, arXiv:2406.16858) join the embedding with the state after the target's final norm,
reduce the pair to the hidden size and pass it through a layer without a norm before its attention; what comes out is
taken for the next state, and the target's own head reads it. EAGLE-3 (arXiv:2503.01840) reads three (or more) layers of
the target at once, attends over the normed embedding and the normed states side by side, and has a norm and a head of
its own, mostly over a part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..batch import ForwardBatch, PagePlaces
from ..layers.attention import Attention
from ..layers.mlp import GatedMLP
from ..layers.parts import LayerParts
from .model import DraftModule


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """What of a head's decoder layer checkpoints have or lack."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


class EagleModule(DraftModule):
    """EAGLE-1 and EAGLE-2."""

    def __init__(
        self,
        parts: LayerParts,
        embedding: Callable[[torch.Tensor], torch.Tensor],
        options: LayerOptions,
        *,
        fc_bias: bool,
    ) -> None:
        weights, hidden = parts.weights, parts.config.hidden_size
        self.ops, self.eps = parts.ops, parts.config.rms_norm_eps
        self.attention = parts.attention
        self.embedding = embedding
        self.fc = parts.ops.linear(
            weights.tensor("fc.weight", (hidden, 2 * hidden)),
            weights.tensor("fc.bias", (hidden,)) if fc_bias else None,
        )
        self.self_attention = Attention(
            parts, qkv_bias=options.qkv_bias, output_bias=options.output_bias, qk_norm=options.qk_norm
        )
        self.mlp_norm = weights.tensor(f"{parts.name}.post_attention_layernorm.weight", (hidden,))
        self.mlp = GatedMLP(parts, bias=options.mlp_bias)

    def forward(
        self, batch: ForwardBatch, features: torch.Tensor, blank: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self._join(batch, features)
        attended = self.self_attention(x, batch)
        x, residual = self.ops.add_rms_norm(attended, x, self.mlp_norm, self.eps)
        # For its sum alone; there is no norm behind the layer.
        _, states = self.ops.add_rms_norm(self.mlp(x), residual, self.mlp_norm, self.eps)
        return states, states

    def write(
        self,
        batch: ForwardBatch,
        features: torch.Tensor,
        places: PagePlaces,
        blank: torch.Tensor | None = None,
    ) -> None:
        self.self_attention.write(self._join(batch, features), batch, places)

    def _join(self, batch: ForwardBatch, features: torch.Tensor) -> torch.Tensor:
        return self.fc(self.ops.join([self.embedding(batch.tokens), features]))


class Eagle3Module(DraftModule):
    """EAGLE-3. Features are the target's states after `fc`, or the layer's own output before the norm."""

    def __init__(
        self,
        parts: LayerParts,
        embedding: Callable[[torch.Tensor], torch.Tensor],
        options: LayerOptions,
        *,
        norm_before_residual: bool,
        norm_output: bool,
    ) -> None:
        """`norm_before_residual`: the layer adds to the normed states; `norm_output`: what is fed back is normed."""
        weights, hidden = parts.weights, parts.config.hidden_size
        self.ops, self.eps = parts.ops, parts.config.rms_norm_eps
        self.attention = parts.attention
        self.embedding = embedding
        self.norm_before_residual, self.norm_output = norm_before_residual, norm_output
        self.embedding_norm = weights.tensor(f"{parts.name}.input_layernorm.weight", (hidden,))
        self.features_norm = weights.tensor(f"{parts.name}.hidden_norm.weight", (hidden,))
        self.self_attention = Attention(
            parts,
            qkv_bias=options.qkv_bias,
            output_bias=options.output_bias,
            qk_norm=options.qk_norm,
            input_size=2 * hidden,
        )
        self.mlp_norm = weights.tensor(f"{parts.name}.post_attention_layernorm.weight", (hidden,))
        self.mlp = GatedMLP(parts, bias=options.mlp_bias)
        self.norm = weights.tensor("norm.weight", (hidden,))

    def forward(
        self, batch: ForwardBatch, features: torch.Tensor, blank: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        joined, normed = self._join(batch, features)
        residual = normed if self.norm_before_residual else features
        x = self.self_attention(joined, batch)
        x, residual = self.ops.add_rms_norm(x, residual, self.mlp_norm, self.eps)
        x, states = self.ops.add_rms_norm(self.mlp(x), residual, self.norm, self.eps)
        return (x if self.norm_output else states), x

    def write(
        self,
        batch: ForwardBatch,
        features: torch.Tensor,
        places: PagePlaces,
        blank: torch.Tensor | None = None,
    ) -> None:
        self.self_attention.write(self._join(batch, features)[0], batch, places)

    def _join(self, batch: ForwardBatch, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(T, 2 * hidden_size) to attend over, and its second half."""
        embedded = self.ops.rms_norm(self.embedding(batch.tokens), self.embedding_norm, self.eps)
        normed = self.ops.rms_norm(features, self.features_norm, self.eps)
        return self.ops.join([embedded, normed]), normed
