"""Paged attention by the C++ kernels: the same results for a query whatever batch, chunks or threads it came with."""

from __future__ import annotations

import torch

from ..cpu.library import SUFFIXES, Library
from .interface import AttentionBatch, AttentionSpec
from .torch_backend import TorchAttention

# A step of fewer (query, key) pairs than this is over before another thread would have taken the GIL.
LONG_CALL = 2_000


class CpuAttention:
    name = "cpu"

    def __init__(self, spec: AttentionSpec, library: Library) -> None:
        self.spec = spec
        self._library = library
        self._torch = TorchAttention(spec)  # for dtypes the kernels lack
        self._batch: AttentionBatch | None = None
        self._planned_torch = False
        self._handle = library.quick["attention_new"](
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            spec.page_size,
            spec.window or 0,
            spec.scale,
            spec.soft_cap or 0.0,
            spec.first,
        )
        self._plan = library.quick["attention_plan"]
        self._run = library.long["attention_run"]

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._library.quick["attention_free"](self._handle)

    def plan(self, batch: AttentionBatch) -> None:
        """Cut the batch into units of work for the threads; the page table is read by `run`."""
        for indices in (batch.slots, batch.starts, batch.q_start, batch.page_table):
            assert indices.dtype == torch.int32
            assert indices.stride(-1) == 1
        self._batch = batch
        self._planned_torch = False
        self._plan(
            self._handle,
            batch.num_rows,
            batch.slots.data_ptr(),
            batch.starts.data_ptr(),
            batch.q_start.data_ptr(),
            batch.page_table.data_ptr(),
            batch.page_table.stride(0),
        )
        pairs = batch.num_tokens * batch.max_context
        self._run = (self._library.quick if pairs < LONG_CALL else self._library.long)["attention_run"]

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
    ) -> torch.Tensor:
        """Write the step's k and v into the pages, attend; (tokens, num_heads, head_dim) in q's dtype."""
        batch = self._batch
        assert batch is not None, "run before plan"
        dtype = q.dtype
        same = dtype == k.dtype == v.dtype == k_pages.dtype == v_pages.dtype
        if not same or dtype not in SUFFIXES or (self.spec.head_dim % 2 and dtype == torch.bfloat16):
            if not self._planned_torch:
                self._torch.plan(batch)
                self._planned_torch = True
            return self._torch.run(q, k, v, k_pages, v_pages)
        q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
        assert k_pages.stride(3) == v_pages.stride(3) == 1
        out = torch.empty(q.shape, dtype=dtype)
        self._run(
            self._handle,
            int(dtype == torch.bfloat16),
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            k_pages.data_ptr(),
            v_pages.data_ptr(),
            out.data_ptr(),
            *q.stride()[:2],
            *k.stride()[:2],
            *v.stride()[:2],
            *k_pages.stride()[:3],
            *v_pages.stride()[:3],
        )
        return out
