"""Paged attention in plain torch, one row at a time: slow, obviously right, the oracle of the others."""

from __future__ import annotations

import torch

from ..interface import NotRecordable
from .interface import AttentionBatch, AttentionSpec

E4M3_MAX = 448.0


class TorchAttention:
    name = "torch"

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self._rows: list[tuple[int, int, int, int]] = []  # (slot, start, first token, end token) of each row
        self._batch: AttentionBatch | None = None

    def plan(self, batch: AttentionBatch) -> None:
        """Read the lengths to the host once; `run` uses them for every layer of the step."""
        bounds = batch.q_start.tolist()
        self._rows = list(
            zip(batch.slots.tolist(), batch.starts.tolist(), bounds[:-1], bounds[1:], strict=True)
        )
        self._batch = batch

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
    ) -> torch.Tensor:
        """Write the step's k and v into the pages, attend; (tokens, num_heads, head_dim) in q's dtype."""
        assert self._batch is not None, "run before plan"
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            raise NotRecordable("attention by torch reads lengths on the host")
        batch, page_size = self._batch, self.spec.page_size
        positions = batch.positions.long()
        pages = batch.page_table[batch.slots.long()[batch.token_rows.long()], positions // page_size].long()
        for cache, new in ((k_pages, k), (v_pages, v)):
            as_stored(cache)[pages, positions % page_size] = as_stored(cast_to_pages(new, cache.dtype))

        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for slot, start, first, end in self._rows:
            context = start + end - first
            row_pages = batch.page_table[slot, : -(-context // page_size)].long()
            keys, values = (
                as_stored(cache)[row_pages].view(cache.dtype).flatten(0, 1)[:context]
                for cache in (k_pages, v_pages)
            )
            out[first:end] = attend(q[first:end], keys, values, start, self.spec)
        return out


def cast_to_pages(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values as pages of `dtype` hold them; in 8 bits what is out of range becomes the largest number."""
    if dtype == torch.float8_e4m3fn:
        x = x.float().clamp(-E4M3_MAX, E4M3_MAX)
    return x.to(dtype)


def as_stored(x: torch.Tensor) -> torch.Tensor:
    """The same memory in a dtype that torch can index."""
    return x.view(torch.uint8) if x.dtype.itemsize == 1 else x


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, spec: AttentionSpec
) -> torch.Tensor:
    """q (len, heads, head_dim) at positions start.. over keys (context, kv_heads, head_dim), causal."""
    group = spec.num_heads // spec.num_kv_heads
    keys32 = keys.float().repeat_interleave(group, dim=1)
    values32 = values.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys32) * spec.scale
    if spec.soft_cap is not None:
        scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
    q_position = torch.arange(start, start + len(q), device=q.device)[:, None]
    k_position = torch.arange(len(keys), device=q.device)[None, :]
    visible = (k_position <= q_position) & (k_position >= q_position.clamp(max=spec.first))
    if spec.window is not None:
        visible &= k_position > q_position - spec.window
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values32).to(q.dtype)
