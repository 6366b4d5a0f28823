"""The one interface of paged attention: `plan` once per step, `run` once per layer.

KV layout (NHD): `k_pages` and `v_pages` are (num_pages, page_size, num_kv_heads, head_dim), one pair per
layer, all layers of a KV group sharing one page table. Position p of the request in slot s lives in page
`page_table[s, p // page_size]` at offset `p % page_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Shapes that all layers of a KV group share. `window` counts visible keys, the query's included.

    Keys at positions below `first` do not exist for queries from there on (those before see at least themselves).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    dtype: torch.dtype = torch.bfloat16  # of queries and results, for back ends that plan by it
    kv_dtype: torch.dtype | None = None  # of the pages; None = the queries'
    first: int = 0


@dataclass(frozen=True, slots=True)
class HostRows:
    """Lengths and slots of a batch's rows on the host, for back ends that plan there. Nobody writes to them."""

    slots: Int32  # (rows,)
    starts: Int32  # (rows,)
    q_start: Int32  # (rows + 1,)


@dataclass(slots=True)
class AttentionBatch:
    """The ragged batch as the back ends see it; index tensors int32, on the device unless said.

    Row i has query tokens q_start[i] .. q_start[i+1]-1 of the flat token axis, the first at position
    starts[i], and sees keys at positions 0 .. starts[i] + len - 1 (causal, its own keys included).
    """

    num_rows: int
    num_tokens: int
    num_decode_rows: int  # the first rows, one query token each
    max_len: int  # longest row in query tokens
    max_context: int  # longest starts + len
    slots: torch.Tensor  # (rows,)
    starts: torch.Tensor  # (rows,)
    q_start: torch.Tensor  # (rows + 1,)
    positions: torch.Tensor  # (tokens,) position of each query token
    token_rows: torch.Tensor  # (tokens,) row of each query token
    page_table: torch.Tensor  # (slots, max_pages)
    host: HostRows


@dataclass(frozen=True, slots=True)
class Rotation:
    """What is to be done to q and k before they meet: optional RMSNorm of each head, then NeoX-style rotary embedding."""

    cos_sin: torch.Tensor  # (max_position, rotary_dim) float32: cos in the first half, sin in the second
    positions: torch.Tensor  # (tokens,) int32
    q_norm: torch.Tensor | None = None  # (head_dim,)
    k_norm: torch.Tensor | None = None
    eps: float = 1e-6


class AttentionBackend(Protocol):
    """One per (device, KV group). Not thread-safe; the device thread owns it."""

    name: str

    def plan(self, batch: AttentionBatch) -> None:
        """Take in everything that depends on lengths; called once per step, before any `run` of it."""

    def run(
        self,
        q: torch.Tensor,  # (tokens, num_heads, head_dim)
        k: torch.Tensor,  # (tokens, num_kv_heads, head_dim)
        v: torch.Tensor,  # (tokens, num_kv_heads, head_dim)
        k_pages: torch.Tensor,  # (num_pages, page_size, num_kv_heads, head_dim)
        v_pages: torch.Tensor,
    ) -> torch.Tensor:
        """Write the step's k and v into the pages, attend; (tokens, num_heads, head_dim) in q's dtype."""


@runtime_checkable
class RotatingAttention(AttentionBackend, Protocol):
    """A back end that rotates q and k in the pass that writes keys and values."""

    def rotate_and_run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
        rotation: Rotation,
    ) -> torch.Tensor:
        """What `run` returns for the rotated q and k; these themselves are left as they are."""
