"""How a layer attends with q and k as they come out of their product: rotated first, or in one pass with the writing."""

from __future__ import annotations

from typing import Protocol

import torch

from ..interface import Ops
from .interface import AttentionBackend, RotatingAttention, Rotation


class RotatedAttention(Protocol):
    def __call__(
        self,
        q: torch.Tensor,  # (tokens, num_heads, head_dim), may be overwritten
        k: torch.Tensor,  # (tokens, num_kv_heads, head_dim), may be overwritten
        v: torch.Tensor,  # (tokens, num_kv_heads, head_dim)
        k_pages: torch.Tensor,  # (num_pages, page_size, num_kv_heads, head_dim)
        v_pages: torch.Tensor,
        rotation: Rotation,
    ) -> torch.Tensor:
        """Norm and rotate q and k, write k and v into the pages, attend; (tokens, num_heads, head_dim)."""


def rotated(ops: Ops, backend: AttentionBackend) -> RotatedAttention:
    """In one pass if the back end can, else `Ops.rotary` and then the back end."""
    if isinstance(backend, RotatingAttention):
        return backend.rotate_and_run

    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        rotation: Rotation,
    ) -> torch.Tensor:
        r = rotation
        q, k = ops.rotary(q, k, r.cos_sin, r.positions, r.q_norm, r.k_norm, r.eps)
        return backend.run(q, k, v, k_pages, v_pages)

    return attend
