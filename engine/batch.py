"""What one forward pass is given, and how it is made from a plan: tokens, positions, attention batches, KV pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..kernels.attention.interface import AttentionBatch
from ..scheduler.arrays import Int32
from ..scheduler.plan import StepPlan


@dataclass(slots=True)
class ForwardBatch:
    """A ragged batch on the device. The attention back ends have taken in `attention` before the pass starts."""

    tokens: torch.Tensor  # (T,) int32
    positions: torch.Tensor  # (T,) int32
    attention: list[AttentionBatch]  # one per KV group
    kv: list[tuple[torch.Tensor, torch.Tensor]]  # k_pages, v_pages of each layer
    wanted: torch.Tensor | None = None  # (R,) int64, the tokens whose final states are used; None = all


class BatchBuilder:
    """Turns plans into batches: index arrays are made with NumPy on the host, token ids are read on the device."""

    def __init__(
        self,
        token_buffer: torch.Tensor,  # (num_slots, max_model_len) int32
        page_tables: list[torch.Tensor],  # per KV group (num_slots, max_pages) int32
        kv: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self._flat_tokens = token_buffer.view(-1)
        self._width = token_buffer.shape[1]
        self._device = token_buffer.device
        self._on_host = self._device.type == "cpu"
        self._page_tables = page_tables
        self._kv = kv
        self._counting: Int32 = np.arange(1, dtype=np.int32)

    def build(self, plan: StepPlan) -> tuple[ForwardBatch, Int32]:
        """The batch, and q_start (rows + 1,) on the host."""
        rows, tokens = len(plan.slots), plan.num_tokens
        counting = self._count(max(rows, tokens) + 1)
        if plan.num_decode_rows == rows:
            q_start, token_rows, positions, slots = (
                counting[: rows + 1],
                counting[:rows],
                plan.starts,
                plan.slots,
            )
            max_len = 1
        else:
            q_start = np.zeros(rows + 1, np.int32)
            np.cumsum(plan.lens, out=q_start[1:])
            token_rows = np.repeat(counting[:rows], plan.lens)
            positions = counting[:tokens] + (plan.starts - q_start[:-1])[token_rows]
            slots = plan.slots[token_rows]
            max_len = int(plan.lens.max())
        places = slots.astype(np.int64) * self._width + positions
        row_slots, starts = self.to_device(plan.slots), self.to_device(plan.starts)
        device_q_start, device_positions = self.to_device(q_start), self.to_device(positions)
        device_token_rows = self.to_device(token_rows)
        max_context = int((plan.starts + plan.lens).max())
        batch = ForwardBatch(
            tokens=self._flat_tokens.index_select(0, self.to_device(places)),
            positions=device_positions,
            attention=[
                AttentionBatch(
                    num_rows=rows,
                    num_tokens=tokens,
                    num_decode_rows=plan.num_decode_rows,
                    max_len=max_len,
                    max_context=max_context,
                    slots=row_slots,
                    starts=starts,
                    q_start=device_q_start,
                    positions=device_positions,
                    token_rows=device_token_rows,
                    page_table=table,
                )
                for table in self._page_tables
            ],
            kv=self._kv,
        )
        return batch, q_start

    def write_tokens(self, slots: Int32, positions: Int32, tokens: torch.Tensor) -> None:
        """The tokens (n,) int32 at `positions` of `slots` are known from now on."""
        places = slots.astype(np.int64) * self._width + positions
        self._flat_tokens.index_copy_(0, self.to_device(places), tokens)

    def read_tokens(self, slot: int, first: int, last: int) -> torch.Tensor:
        """Tokens at positions first .. last-1 of one slot."""
        return self._flat_tokens[slot * self._width + first : slot * self._width + last]

    def to_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """On a CPU the array's own memory: whoever made it must not write to it again."""
        tensor = torch.from_numpy(array)
        return tensor if self._on_host else tensor.to(self._device, non_blocking=True)

    def _count(self, n: int) -> Int32:
        if len(self._counting) < n:
            self._counting = np.arange(2 * n, dtype=np.int32)
        return self._counting
