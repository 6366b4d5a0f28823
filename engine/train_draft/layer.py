"""The trainable decoder layer of a drafting head, run for many chains of drafts at once.

A chain begins at a row p of a text, its anchor, and goes on with the head's own states: its step j stands at position
p + j, and attends to the rows up to p, which were made from the target's states, and to its own steps 1 .. j. That is
what a drafter's KV cache holds when it drafts, so a chain is trained on what it will see (training-time test,
EAGLE-3, arXiv:2503.01840 section 3.2).

Shapes: B texts of L rows, M anchors each; N is L or M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.reference import rotate


@dataclass(frozen=True, slots=True)
class LayerShape:
    """`in_size` is what attention reads; the residual stream has `hidden_size`."""

    in_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


@dataclass(slots=True)
class Rows:
    """Keys and values (B, num_kv_heads, L, head_dim) of the rows up to the anchors, and of each later step (…, M, …).

    `visible` (B, M, L) says which rows an anchor sees, itself included.
    """

    keys: torch.Tensor
    values: torch.Tensor
    visible: torch.Tensor
    own: list[tuple[torch.Tensor, torch.Tensor]]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., size) -> (..., size), computed in float32."""
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps).to(x.dtype)


class ChainAttention(nn.Module):
    """Grouped-query attention with rotary positions; `cos_sin` (max_position, rotary_dim) float32."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.in_size, q_size, bias=shape.qkv_bias)
        self.k_proj = nn.Linear(shape.in_size, kv_size, bias=shape.qkv_bias)
        self.v_proj = nn.Linear(shape.in_size, kv_size, bias=shape.qkv_bias)
        self.o_proj = nn.Linear(q_size, shape.hidden_size, bias=shape.output_bias)
        if shape.qk_norm:
            self.q_norm = RMSNorm(shape.head_dim, shape.eps)
            self.k_norm = RMSNorm(shape.head_dim, shape.eps)

    def keys_values(
        self, x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, N, in_size) at positions (B, N) -> keys and values, each (B, num_kv_heads, N, head_dim)."""
        keys = self._heads(self.k_proj(x))
        if self.shape.qk_norm:
            keys = self.k_norm(keys)
        return turned(keys, positions, cos_sin), self._heads(self.v_proj(x))

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        """x (B, M, in_size) at positions (B, M), one softmax over rows and own steps -> (B, M, hidden_size)."""
        queries = self._heads(self.q_proj(x))
        if self.shape.qk_norm:
            queries = self.q_norm(queries)
        queries = turned(queries, positions, cos_sin)
        batch, heads, anchors, dim = queries.shape
        queries = queries.view(batch, self.shape.num_kv_heads, -1, anchors, dim) * dim**-0.5
        scores = torch.einsum("bgqmd,bgld->bgqml", queries, rows.keys).float()
        scores = scores.masked_fill(~rows.visible[:, None, None], float("-inf"))
        mine = [
            (queries * keys[:, :, None]).sum(-1, dtype=torch.float32, keepdim=True) for keys, _ in rows.own
        ]
        weights = torch.cat([scores, *mine], dim=-1).softmax(dim=-1).to(queries.dtype)
        length = rows.keys.shape[2]
        mixed = torch.einsum("bgqml,bgld->bgqmd", weights[..., :length], rows.values)
        for step, (_, values) in enumerate(rows.own):
            mixed = mixed + weights[..., length + step, None] * values[:, :, None]
        attended: torch.Tensor = self.o_proj(
            mixed.view(batch, heads, anchors, dim).transpose(1, 2).flatten(2)
        )
        return attended

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], -1, self.shape.head_dim).transpose(1, 2)


def turned(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """x (B, heads, N, head_dim) rotated to positions (B, N), in x's dtype."""
    cos, sin = cos_sin[positions][:, None].chunk(2, dim=-1)
    return rotate(x.float(), cos, sin).to(x.dtype)


class GatedMLP(nn.Module):
    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        hidden, inner, bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., hidden_size)."""
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def initialise(module: nn.Module, std: float, generator: torch.Generator) -> None:
    """Normal weights for matrices, zero biases; norms stay at one."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=std, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def picked(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x (B, L, ...) at index (B, M) -> (B, M, ...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]
