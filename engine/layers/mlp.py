"""The gated feed-forward block (SwiGLU, arXiv:2002.05202)."""

from __future__ import annotations

import torch

from .linear import row_parallel
from .parts import LayerParts


class GatedMLP:
    """down(silu(gate(x)) · up(x)); gate and up come out of one product. Ranks share out what lies between."""

    def __init__(
        self,
        parts: LayerParts,
        *,
        bias: bool,
        name: str | None = None,  # prefix of its weights; None = the layer's mlp
        intermediate_size: int | None = None,  # None = the configuration's
    ) -> None:
        hidden, inner = parts.config.hidden_size, intermediate_size or parts.config.intermediate_size
        weights, name = parts.weights, name or f"{parts.name}.mlp"
        names = [f"{name}.{x}_proj" for x in ("gate", "up")]
        own = [parts.shard.part(inner)] * 2
        self.gated = parts.ops.gated_linear(
            weights.stacked([f"{n}.weight" for n in names], [(inner, hidden)] * 2, own),
            weights.stacked([f"{n}.bias" for n in names], [(inner,)] * 2, own) if bias else None,
        )
        self.down = row_parallel(parts, f"{name}.down_proj", hidden, inner, bias=bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, hidden_size) -> (T, hidden_size)."""
        return self.down(self.gated(x))
