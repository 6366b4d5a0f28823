"""The next-token layers that checkpoints bring along (DeepSeek-V3, arXiv:2412.19437 section 2.2), of dense families.

Both the embedding of a token and the state before it are normed, joined and reduced to the hidden size; a decoder layer
of the target's family and a norm follow, then the target's own head. The state is the target's after its final norm, or
what the layer before gave; with more tokens than layers the last layer goes on from its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..batch import ForwardBatch, PagePlaces
from ..layers.decoder import DecoderLayer
from ..layers.parts import LayerParts
from .model import DraftModule


@dataclass(frozen=True, slots=True)
class MTPLayout:
    """How a kind of checkpoint names a layer's parts ("{n}" is the layer's number), and in what it differs.

    `num_layers_keys` is where config.json says how many there are.
    """

    block: str
    embedding_norm: str
    state_norm: str
    projection: str
    norm: str
    num_layers_keys: tuple[str, ...]
    state_first: bool  # in what is reduced
    blanks_first: bool  # the first token's embedding is zeros, as the field's engines have it
    feeds_normed: bool  # what the next layer gets is after the norm


MIMO = MTPLayout(
    block="model.mtp_layers.{n}",
    embedding_norm="model.mtp_layers.{n}.token_layernorm.weight",
    state_norm="model.mtp_layers.{n}.hidden_layernorm.weight",
    projection="model.mtp_layers.{n}.input_proj.weight",
    norm="model.mtp_layers.{n}.final_layernorm.weight",
    num_layers_keys=("num_nextn_predict_layers",),
    state_first=True,
    blanks_first=True,
    feeds_normed=True,
)
QWEN = MTPLayout(
    block="mtp.layers.{n}",
    embedding_norm="mtp.pre_fc_norm_embedding.weight",
    state_norm="mtp.pre_fc_norm_hidden.weight",
    projection="mtp.fc.weight",
    norm="mtp.norm.weight",
    num_layers_keys=("mtp_num_hidden_layers", "num_nextn_predict_layers"),
    state_first=False,
    blanks_first=False,
    feeds_normed=True,
)
# DeepSeek-V3 counts them among the model's layers, behind the last one.
DEEPSEEK = MTPLayout(
    block="model.layers.{n}",
    embedding_norm="model.layers.{n}.enorm.weight",
    state_norm="model.layers.{n}.hnorm.weight",
    projection="model.layers.{n}.eh_proj.weight",
    norm="model.layers.{n}.shared_head.norm.weight",
    num_layers_keys=("num_nextn_predict_layers",),
    state_first=False,
    blanks_first=True,
    feeds_normed=False,
)


class MTPModule(DraftModule):
    def __init__(
        self,
        parts: LayerParts,
        layout: MTPLayout,
        number: int,
        embedding: Callable[[torch.Tensor], torch.Tensor],
        layer: Callable[[LayerParts], DecoderLayer],
    ) -> None:
        """`layer` builds one of the target's family."""
        weights, hidden = parts.weights, parts.config.hidden_size
        self.ops, self.eps = parts.ops, parts.config.rms_norm_eps
        self.attention = parts.attention
        self.layout = layout
        self.blanks_first = layout.blanks_first
        self.embedding = embedding
        self.embedding_norm = weights.tensor(layout.embedding_norm.format(n=number), (hidden,))
        self.state_norm = weights.tensor(layout.state_norm.format(n=number), (hidden,))
        self.projection = parts.ops.linear(
            weights.tensor(layout.projection.format(n=number), (hidden, 2 * hidden))
        )
        self.layer = layer(parts)
        self.norm = weights.tensor(layout.norm.format(n=number), (hidden,))

    def forward(
        self, batch: ForwardBatch, features: torch.Tensor, blank: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = self.layer(self._join(batch, features, blank), None, batch)
        normed, states = self.ops.add_rms_norm(x, residual, self.norm, self.eps)
        return (normed if self.layout.feeds_normed else states), normed

    def write(
        self,
        batch: ForwardBatch,
        features: torch.Tensor,
        places: PagePlaces,
        blank: torch.Tensor | None = None,
    ) -> None:
        self.layer.write(self._join(batch, features, blank), batch, places)

    def _join(self, batch: ForwardBatch, features: torch.Tensor, blank: torch.Tensor | None) -> torch.Tensor:
        embedded = self.embedding(batch.tokens)
        if blank is not None:
            embedded = embedded.masked_fill(blank, 0.0)
        embedded = self.ops.rms_norm(embedded, self.embedding_norm, self.eps)
        state = self.ops.rms_norm(features, self.state_norm, self.eps)
        both = [state, embedded] if self.layout.state_first else [embedded, state]
        return self.projection(self.ops.join(both))
