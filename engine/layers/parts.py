"""What a layer is built from: its place in the model, its weights, the operations and its attention back end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from ...kernels.attention.interface import AttentionBackend
from ...kernels.interface import Ops
from ..models.config import ModelConfig
from ..parallel.shard import Part, Shard


class Weights(Protocol):
    """Where parameters come from; each is asked for once, by its full name and shape in the checkpoint."""

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        part: Part | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """The named tensor, or the part of it that is wanted, on the model's device and in its dtype (or in this one),
        owned by the caller."""

    def stacked(
        self,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        parts: Sequence[Part | None] | None = None,
    ) -> torch.Tensor:
        """Several tensors (or parts), one above the other (along the first dimension), in one owned tensor."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    config: ModelConfig
    index: int  # of the layer, among those of this process
    name: str  # prefix of its weights, e.g. "model.layers.3"
    weights: Weights
    ops: Ops
    attention: AttentionBackend
    cos_sin: torch.Tensor  # (max_position, rotary_dim) float32
    shard: Shard
