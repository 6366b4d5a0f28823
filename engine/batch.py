"""What one forward pass is given, and how it is made from a plan: tokens, positions, attention batches, KV pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..kernels.attention.interface import AttentionBatch, HostRows
from ..scheduler.arrays import Int32
from ..scheduler.plan import StepPlan
from .streams import HostStream, Stream


@dataclass(slots=True)
class ForwardBatch:
    """A ragged batch on the device. The attention back ends have taken in `attention` before the pass starts."""

    tokens: torch.Tensor  # (T,) int32
    positions: torch.Tensor  # (T,) int32
    attention: list[AttentionBatch]  # one per KV group
    kv: list[tuple[torch.Tensor, torch.Tensor]]  # k_pages, v_pages of each layer
    wanted: torch.Tensor | None = None  # (R,) int64, the tokens whose final states are used; None = all


@dataclass(frozen=True, slots=True)
class DeviceSlots:
    """What the device knows of every slot; the last one is scratch."""

    token_buffer: torch.Tensor  # (num_slots + 1, max_model_len) int32
    page_tables: Sequence[torch.Tensor]  # per KV group (num_slots + 1, max_pages) int32


@dataclass(frozen=True, slots=True)
class PagePlaces:
    """Where the keys and values of T tokens lie: int64 (T,), on the device."""

    pages: torch.Tensor
    offsets: torch.Tensor


@dataclass(slots=True)
class BatchArrays:
    """The index arrays of a batch on the host; int32 unless said. Padding rows come last and decode."""

    num_decode_rows: int
    max_len: int
    max_context: int
    slots: Int32  # (rows,)
    starts: Int32  # (rows,)
    q_start: Int32  # (rows + 1,)
    positions: Int32  # (T,)
    token_rows: Int32  # (T,)
    places: npt.NDArray[np.int64]  # (T,) of the tokens in the flat token buffer


class BatchBuilder:
    """Turns plans into batches: index arrays are made with NumPy on the host, token ids are read on the device."""

    def __init__(
        self,
        token_buffer: torch.Tensor,  # (num_slots, max_model_len) int32
        page_tables: list[torch.Tensor],  # per KV group (num_slots, max_pages) int32
        kv: list[tuple[torch.Tensor, torch.Tensor]],
        stream: Stream | None = None,
        scratch_slot: int = 0,
    ) -> None:
        """Padding rows compute position 0 of `scratch_slot`: its page tables must name pages that no request has."""
        self._flat_tokens = token_buffer.view(-1)
        self._width = token_buffer.shape[1]
        self._page_tables = page_tables
        self._kv = kv
        self._stream = stream or HostStream()
        self._scratch_slot = scratch_slot
        self._counting: Int32 = np.arange(1, dtype=np.int32)

    def index(self, plan: StepPlan, num_rows: int = 0) -> BatchArrays:
        """The plan's arrays. A plan of decodes alone is padded to `num_rows`."""
        rows, tokens = len(plan.slots), plan.num_tokens
        if plan.num_decode_rows == rows:
            slots, starts = plan.slots, plan.starts
            if num_rows > rows:
                slots, starts = pad(slots, num_rows, self._scratch_slot), pad(starts, num_rows, 0)
                rows = num_rows
            counting = self._count(rows + 1)
            q_start, token_rows, positions, token_slots = (
                counting[: rows + 1],
                counting[:rows],
                starts,
                slots,
            )
            num_decode_rows, max_len = rows, 1
        else:
            counting = self._count(max(rows, tokens) + 1)
            slots, starts, num_decode_rows = plan.slots, plan.starts, plan.num_decode_rows
            q_start = np.zeros(rows + 1, np.int32)
            np.cumsum(plan.lens, out=q_start[1:])
            token_rows = np.repeat(counting[:rows], plan.lens)
            positions = counting[:tokens] + (plan.starts - q_start[:-1])[token_rows]
            token_slots = plan.slots[token_rows]
            max_len = int(plan.lens.max())
        return BatchArrays(
            num_decode_rows=num_decode_rows,
            max_len=max_len,
            max_context=int((plan.starts + plan.lens).max()),
            slots=slots,
            starts=starts,
            q_start=q_start,
            positions=positions,
            token_rows=token_rows,
            places=self.places(token_slots, positions),
        )

    def build(
        self,
        plan: StepPlan,
        arrays: BatchArrays | None = None,
        others: Sequence[npt.NDArray[Any]] = (),
    ) -> tuple[ForwardBatch, list[torch.Tensor]]:
        """The batch of a plan, from the `arrays` that `index` gave, and the step's `others` on the device: all go there
        in one copy. On a CPU they are the arrays' own memory: whoever made one must not write to it again."""
        arrays = arrays or self.index(plan)
        slots, starts, q_start, positions, token_rows, places, *staged = self._stream.stage(
            [
                arrays.slots,
                arrays.starts,
                arrays.q_start,
                arrays.positions,
                arrays.token_rows,
                arrays.places,
                *others,
            ]
        )
        host = HostRows(arrays.slots, arrays.starts, arrays.q_start)
        batch = ForwardBatch(
            tokens=self._flat_tokens.index_select(0, places),
            positions=positions,
            attention=[
                AttentionBatch(
                    num_rows=len(arrays.slots),
                    num_tokens=len(arrays.positions),
                    num_decode_rows=arrays.num_decode_rows,
                    max_len=arrays.max_len,
                    max_context=arrays.max_context,
                    slots=slots,
                    starts=starts,
                    q_start=q_start,
                    positions=positions,
                    token_rows=token_rows,
                    page_table=table,
                    host=host,
                )
                for table in self._page_tables
            ],
            kv=self._kv,
        )
        return batch, staged

    def places(self, slots: Int32, positions: Int32) -> npt.NDArray[np.int64]:
        """Where the tokens at `positions` of `slots` lie in the flat token buffer."""
        return slots.astype(np.int64) * self._width + positions

    def write_tokens(self, places: torch.Tensor, tokens: torch.Tensor) -> None:
        """The tokens (n,) int32 at `places` (n,) int64 are known from now on."""
        self._flat_tokens.index_copy_(0, places, tokens)

    def read_tokens(self, slot: int, first: int, last: int) -> torch.Tensor:
        """Tokens at positions first .. last-1 of one slot."""
        return self._flat_tokens[slot * self._width + first : slot * self._width + last]

    def _count(self, n: int) -> Int32:
        if len(self._counting) < n:
            self._counting = np.arange(2 * n, dtype=np.int32)
        return self._counting


def pad(array: Int32, size: int, value: int) -> Int32:
    """(n,) -> (size,), filled up with `value`."""
    padded = np.full(size, value, np.int32)
    padded[: len(array)] = array
    return padded
