"""Paged attention by FlashInfer: which of its kernels computes which rows, planned once a step without waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

from ..cuda.library import FlashInfer
from ..cuda.pages import dense_tables, page_lists, token_places
from ..cuda.rotate import rotate_and_write, write
from ..interface import NotRecordable
from .interface import AttentionBatch, AttentionSpec, Int32, Rotation

Kernel: TypeAlias = Literal["xqa", "fa2", "fa3"]

HEAD_DIMS = (64, 128, 256)  # of the prefill kernels
XQA_PAGE_SIZES = (16, 32, 64, 128)
XQA_ARCHITECTURES, FA3_ARCHITECTURE = (9, 10, 12), 9  # major compute capabilities
XQA_GROUP = 16  # query heads of a KV head, at most
XQA_WORKSPACE_BYTES = 136 << 20  # 8 MiB of it are semaphores
WORKSPACE_BYTES_PER_HEAD = 4 << 20
LEAST_WORKSPACE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Rows first .. last-1 of a batch, by one kernel."""

    kernel: Kernel
    first: int
    last: int


def choose(kernels: frozenset[Kernel], batch: AttentionBatch) -> list[Part]:
    """Which of the `kernels` that there are computes which rows.

    Decodes: XQA, whose inputs all lie on the device, so that a recording stays good. Prompts of which nothing is cached:
    fa3, made for many queries. Everything else, decodes beside prompts too: fa2, which splits long contexts over the GPU.
    """
    rows = batch.num_rows
    if "xqa" in kernels and batch.num_decode_rows == rows:
        return [Part("xqa", 0, rows)]
    if "fa3" in kernels and not batch.host.starts.any():
        return [Part("fa3", 0, rows)]
    return [Part("fa2", 0, rows)]


def kernels_for(spec: AttentionSpec, architecture: int) -> frozenset[Kernel]:
    """What can compute layers of this kind on GPUs of this major compute capability."""
    found: set[Kernel] = {"fa2"}
    if (
        architecture in XQA_ARCHITECTURES
        and spec.page_size in XQA_PAGE_SIZES
        and spec.num_heads // spec.num_kv_heads <= XQA_GROUP
        and spec.soft_cap is None
    ):
        found.add("xqa")
    if architecture == FA3_ARCHITECTURE and spec.kv_dtype in (None, spec.dtype):
        found.add("fa3")
    return frozenset(found)


def why_not(spec: AttentionSpec) -> str | None:
    """What keeps these kernels from layers of this kind, if anything does."""
    if spec.dtype not in (torch.bfloat16, torch.float16):
        return f"computes in bfloat16 and float16, not in {spec.dtype}"
    if spec.kv_dtype not in (None, spec.dtype, torch.float8_e4m3fn):
        return f"cannot read keys and values of {spec.kv_dtype} with queries of {spec.dtype}"
    if spec.head_dim not in HEAD_DIMS:
        return f"has kernels for heads of {', '.join(map(str, HEAD_DIMS))} dimensions, not of {spec.head_dim}"
    if spec.first:
        return f"cannot leave out the keys before position {spec.first}"
    return None


class Fence(Protocol):
    """A place in the order of the device's work, as torch.cuda.Event is."""

    def record(self) -> None:
        """It is here from now on, behind all that is enqueued."""

    def synchronize(self) -> None:
        """Wait until the device has come by; at once where nothing was recorded."""


class Planned(Protocol):
    """One part, ready for every layer."""

    recordable: bool

    def run(self, q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> None:
        """Attend: q and out (tokens of the part, num_heads, head_dim), contiguous; kv the pages."""


class FlashInferAttention:
    """Keys and values are written by own kernels, in the same pass as q and k are rotated."""

    name = "flashinfer"

    def __init__(
        self,
        spec: AttentionSpec,
        device: torch.device,
        flashinfer: FlashInfer,
        architecture: int,  # major compute capability
        new_fence: Callable[[], Fence] = torch.cuda.Event,
    ) -> None:
        """Raises ValueError where `why_not` has a reason."""
        if reason := why_not(spec):
            raise ValueError(f"flashinfer {reason}")
        self.spec = spec
        self._device = device
        self._kernels = kernels_for(spec, architecture)
        self._decode = Decode(spec, device, flashinfer) if "xqa" in self._kernels else None
        size = max(LEAST_WORKSPACE_BYTES, WORKSPACE_BYTES_PER_HEAD * spec.num_heads)
        # One part runs after the other, so all wrappers may use the same one.
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        self._prefill = {
            kernel: Prefill(spec, device, flashinfer, kernel, workspace, new_fence)
            for kernel in self._kernels - {"xqa"}
        }
        self._parts: list[tuple[slice, Planned]] = []  # tokens of each
        self._static_places = torch.empty(0, dtype=torch.int32, device=device)
        self._places = self._static_places  # of the step's tokens

    def plan(self, batch: AttentionBatch) -> None:
        """Everything but page numbers comes from the host's arrays, and these are only read on the device."""
        self._place(batch)
        q_start = batch.host.q_start
        self._parts = []
        for part in choose(self._kernels, batch):
            tokens = slice(int(q_start[part.first]), int(q_start[part.last]))
            if part.kernel == "xqa":
                assert self._decode is not None
                planned: Planned = self._decode.plan(batch, part)
            else:
                planned = self._prefill[part.kernel].plan(batch, part)
            self._parts.append((tokens, planned))

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        k_pages: torch.Tensor,
        v_pages: torch.Tensor,
    ) -> torch.Tensor:
        """Write the step's k and v into the pages, attend; (tokens, num_heads, head_dim) in q's dtype."""
        write(k, v, k_pages, v_pages, self._places)
        return self._attend(q.contiguous(), k_pages, v_pages)

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
        q = rotate_and_write(q, k, v, k_pages, v_pages, self._places, rotation)
        return self._attend(q, k_pages, v_pages)

    def _attend(self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor) -> torch.Tensor:
        assert self._parts, "run before plan"
        out = torch.empty_like(q)
        for tokens, planned in self._parts:
            if not planned.recordable and q.is_cuda and torch.cuda.is_current_stream_capturing():
                raise NotRecordable("the plan of FlashInfer's prefill kernels changes with the lengths")
            planned.run(q[tokens], (k_pages, v_pages), out[tokens])
        return out

    def _place(self, batch: AttentionBatch) -> None:
        """Where tokens go. Recordings of decodes read it, so for these it keeps its address."""
        tokens = batch.num_tokens
        if batch.num_decode_rows == batch.num_rows:
            if len(self._static_places) < tokens:
                size = max(tokens, len(batch.page_table))
                self._static_places = torch.empty(size, dtype=torch.int32, device=self._device)
            self._places = self._static_places[:tokens]
        else:
            self._places = torch.empty(tokens, dtype=torch.int32, device=self._device)
        token_places(
            self._places,
            batch.page_table,
            self.spec.page_size,
            batch.slots,
            batch.token_rows,
            batch.positions,
        )


class Decode:
    """XQA: page tables and lengths of the rows in tensors that keep their addresses."""

    recordable = True

    def __init__(self, spec: AttentionSpec, device: torch.device, flashinfer: FlashInfer) -> None:
        self._spec = spec
        self._device = device
        self._attend = flashinfer.decode.xqa_batch_decode_with_kv_cache
        # Its semaphores have to be zero before the first use, and every use leaves them so.
        self._workspace = torch.zeros(XQA_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._tables = torch.zeros((0, 0), dtype=torch.int32, device=device)
        self._lengths = torch.zeros(0, dtype=torch.int32, device=device)
        self._rows = slice(0, 0)

    def plan(self, batch: AttentionBatch, part: Part) -> Decode:
        """Of rows that have one query token each."""
        slots, width = batch.page_table.shape
        if len(self._tables) < part.last or self._tables.shape[1] != width:
            # Requests have a slot each, so that only the first plan of a server comes here.
            size = max(part.last, slots)
            self._tables = torch.zeros((size, width), dtype=torch.int32, device=self._device)
            self._lengths = torch.ones(size, dtype=torch.int32, device=self._device)
        rows = self._rows = slice(part.first, part.last)
        dense_tables(
            self._tables[rows],
            self._lengths[rows],
            batch.page_table,
            self._spec.page_size,
            batch.slots[rows],
            batch.starts[rows],
            batch.max_context,
        )
        return self

    def run(self, q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> None:
        tables = self._tables[self._rows]
        self._attend(
            q,
            kv,
            self._workspace,
            tables,
            self._lengths[self._rows],
            tables.shape[1] * self._spec.page_size,
            bmm1_scale=self._spec.scale,
            bmm2_scale=1.0,
            window_left=window_left(self._spec),
            out=out,
            kv_layout="NHD",
        )


class Prefill:
    """One of the wrappers that plan on the host, for any rows.

    A wrapper's plan is written into one pinned buffer and copied from there when the device comes to it, so there are
    two that take turns, and each waits for its own last copy: with one step in flight that is over.
    """

    recordable = False

    def __init__(
        self,
        spec: AttentionSpec,
        device: torch.device,
        flashinfer: FlashInfer,
        kernel: str,
        workspace: torch.Tensor,
        new_fence: Callable[[], Fence],
    ) -> None:
        self._spec = spec
        self._device = device
        self._new_wrapper: Callable[[], Any] = lambda: flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            workspace, "NHD", backend=kernel
        )
        self._new_fence = new_fence
        self._turns: list[tuple[Any, Fence]] = []

    def plan(self, batch: AttentionBatch, part: Part) -> PlannedPrefill:
        """Rows part.first .. part.last-1 of the batch."""
        if len(self._turns) < 2:  # 16 MiB of buffers each, which not every server needs
            self._turns.append((self._new_wrapper(), self._new_fence()))
        else:
            self._turns.reverse()
        wrapper, fence = self._turns[-1]
        fence.synchronize()
        spec, rows = self._spec, slice(part.first, part.last)
        q_start = batch.host.q_start[part.first : part.last + 1]
        contexts = batch.host.starts[rows] + np.diff(q_start)
        pages = -(-contexts // spec.page_size)
        begins = np.zeros(len(pages) + 1, np.int32)
        np.cumsum(pages, out=begins[1:])
        lists = torch.empty(int(begins[-1]), dtype=torch.int32, device=self._device)
        host_begins = self._pinned(begins)
        page_lists(
            lists,
            host_begins.to(self._device, non_blocking=True),
            batch.page_table,
            batch.slots[rows],
            int(pages.max()),
        )
        wrapper.plan(
            self._pinned(q_start - q_start[0]),
            host_begins,
            lists,
            self._pinned(contexts - (pages - 1) * spec.page_size),
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            spec.page_size,
            causal=True,
            sm_scale=spec.scale,
            window_left=window_left(spec),
            logits_soft_cap=spec.soft_cap,
            q_data_type=spec.dtype,
            kv_data_type=spec.kv_dtype or spec.dtype,
            o_data_type=spec.dtype,
            non_blocking=True,
            seq_lens=self._pinned(contexts),
        )
        fence.record()
        return PlannedPrefill(wrapper)

    def _pinned(self, array: Int32) -> torch.Tensor:
        """A host tensor of its own: torch gives pinned memory to nobody else while it is being copied from."""
        tensor = torch.from_numpy(np.ascontiguousarray(array, np.int32))
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


class PlannedPrefill:
    recordable = False

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper

    def run(self, q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> None:
        assert kv[0].stride() == kv[1].stride(), "pages of keys and of values are laid out alike"
        self._wrapper.run(q, kv, out=out)


def window_left(spec: AttentionSpec) -> int:
    """Keys before the query's own that it sees; -1 for all."""
    return -1 if spec.window is None else spec.window - 1
