"""Builds ragged paged batches with a page table that visits pages in no order, and runs them on a back end and on torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from kernel_targets import make_attention
from penstock.kernels.attention.interface import AttentionBackend, AttentionBatch, AttentionSpec, HostRows
from penstock.kernels.attention.torch_backend import TorchAttention
from penstock.kernels.cpu.library import Library

Target = tuple[str, torch.dtype]  # see kernel_targets
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_batch(rows: list[tuple[int, int]], page_size: int, seed: int = 0) -> tuple[AttentionBatch, int]:
    """Rows as (start, query tokens), decodes first; returns the batch and the number of pages it needs."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [length for _, length in rows]
    bounds = [sum(lengths[:i]) for i in range(len(rows) + 1)]
    pages_of = [-(-(start + length) // page_size) for start, length in rows]
    num_pages = sum(pages_of) + 3
    order = torch.randperm(num_pages, generator=generator).to(torch.int32)
    slots = torch.randperm(len(rows) + 2, generator=generator)[: len(rows)].tolist()
    spare = int(order[-1])  # belongs to nobody
    table = torch.full((len(rows) + 2, max(pages_of)), spare, dtype=torch.int32)
    taken = 0
    for slot, count in zip(slots, pages_of, strict=True):
        table[slot, :count] = order[taken : taken + count]
        taken += count
    batch = AttentionBatch(
        num_rows=len(rows),
        num_tokens=bounds[-1],
        num_decode_rows=sum(length == 1 for length in lengths),
        max_len=max(lengths),
        max_context=max(start + length for start, length in rows),
        slots=int32(slots),
        starts=int32([start for start, _ in rows]),
        q_start=int32(bounds),
        positions=int32([start + i for start, length in rows for i in range(length)]),
        token_rows=int32([row for row, length in enumerate(lengths) for _ in range(length)]),
        page_table=table,
        host=HostRows(
            np.array(slots, np.int32),
            np.array([start for start, _ in rows], np.int32),
            np.array(bounds, np.int32),
        ),
    )
    return batch, num_pages


def make_tensors(
    spec: AttentionSpec, batch: AttentionBatch, num_pages: int, dtype: torch.dtype, seed: int = 0
) -> dict[str, torch.Tensor]:
    """q, k, v as slices of one fused tensor (strided, as models pass them) and pages full of old keys, in the dtype
    that the spec has for them, or the queries'."""
    generator = torch.Generator().manual_seed(seed)
    heads = spec.num_heads + 2 * spec.num_kv_heads
    fused = torch.randn(batch.num_tokens, heads, spec.head_dim, generator=generator).to(dtype)
    q, k, v = fused.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
    shape = (num_pages, spec.page_size, spec.num_kv_heads, spec.head_dim)
    pages = {
        name: torch.randn(shape, generator=generator).to(spec.kv_dtype or dtype)
        for name in ("k_pages", "v_pages")
    }
    return {"q": q, "k": k, "v": v, **pages}


def run(backend: AttentionBackend, batch: AttentionBatch, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    backend.plan(batch)
    return backend.run(**tensors)


def spec_of(
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 64,
    page_size: int = 16,
    window: int | None = None,
    soft_cap: float | None = None,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
) -> AttentionSpec:
    return AttentionSpec(*heads, head_dim, page_size, head_dim**-0.5, window, soft_cap, dtype, kv_dtype)


def check_against_oracle(
    library: Library, target: Target, spec: AttentionSpec, rows: list[tuple[int, int]], seed: int = 0
) -> None:
    name, dtype = target
    spec = replace(spec, dtype=dtype)
    batch, num_pages = make_batch(rows, spec.page_size, seed)
    tensors = make_tensors(spec, batch, num_pages, dtype, seed)
    expected_tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    out = run(make_attention(name, spec, library), batch, tensors)
    expected = run(TorchAttention(spec), batch, expected_tensors)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    assert torch.equal(tensors["k_pages"], expected_tensors["k_pages"])
    assert torch.equal(tensors["v_pages"], expected_tensors["v_pages"])
