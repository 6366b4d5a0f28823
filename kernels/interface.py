"""The operations a model's forward pass is made of; one implementation per back end, chosen by `select.py`.

Shapes: T tokens, H hidden size. Implementations compute in float32 inside and return the input's dtype.
Where a docstring says "in place", callers must use the returned tensors all the same.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Linear(Protocol):
    """A prepared (possibly repacked) weight: y = x @ weight.T + bias."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, (N,) int -> (N, in_features): embedding lookup in a tied head without a copy."""


class Ops(Protocol):
    name: str

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """Prepare a weight (out, in) for products; takes ownership of it, may repack it once."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """(..., H) -> (..., H)."""

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """residual + x in place in `residual`; returns (rms_norm of the sum, the sum)."""

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """(T, 2I) -> (T, I): silu of the first half times the second."""

    def rotary(
        self,
        q: torch.Tensor,  # (T, num_heads, head_dim)
        k: torch.Tensor,  # (T, num_kv_heads, head_dim)
        cos_sin: torch.Tensor,  # (max_position, rotary_dim) float32: cos in the first half, sin in the second
        positions: torch.Tensor,  # (T,) int32
        q_norm: torch.Tensor | None = None,  # (head_dim,) RMSNorm weight applied per head before rotating
        k_norm: torch.Tensor | None = None,
        eps: float = 1e-6,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Optional per-head RMSNorm, then NeoX-style rotary embedding (half with half), in place."""

    def mask_logits(self, logits: torch.Tensor, bits: torch.Tensor, rows: torch.Tensor) -> None:
        """Forbid tokens, in place: their logits become -inf.

        logits (n, vocab_size); rows (k,) int32, which of them; bits (k, ceil(vocab_size / 32)) int32, where bit t % 32
        of word t // 32 is set if token t may come. All on the same device.
        """
