"""Products whose inputs are shared out between the ranks that share a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from .parts import LayerParts

Projection: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def row_parallel(
    parts: LayerParts, name: str, out_features: int, in_features: int, *, bias: bool
) -> Projection:
    """(T, this rank's share of in_features) -> (T, out_features), summed over ranks. One of them adds the bias."""
    weights, group = parts.weights, parts.shard.tensor
    product = parts.ops.linear(
        weights.tensor(f"{name}.weight", (out_features, in_features), parts.shard.part(in_features, dim=1)),
        weights.tensor(f"{name}.bias", (out_features,)) if bias and group.rank == 0 else None,
    )
    if group.size == 1:
        return product
    return lambda x: group.all_reduce(product(x))
