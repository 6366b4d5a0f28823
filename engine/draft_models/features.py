"""What a drafting module reads of the position before: kept per slot for the latest positions, per page for its last.

Entries of a module are made from the states of the position before, mostly in the step after. Those of a slot's latest
positions lie in a ring; a prefix that another request left has only its pages, so each page keeps those of its last
position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...scheduler.arrays import Int32
from ...spec.verify import offsets
from ..streams import Stream


@dataclass(frozen=True, slots=True)
class Spans:
    """Consecutive positions begins[i] .. ends[i] - 1 of slots[i], at least one, one row's after the other's; int32
    (rows,)."""

    slots: Int32
    begins: Int32
    ends: Int32

    @property
    def lens(self) -> Int32:
        return self.ends - self.begins

    @property
    def num_tokens(self) -> int:
        return int(self.lens.sum())

    def tokens(self) -> tuple[Int32, Int32]:
        """Slot and position of each, int32 (num_tokens,)."""
        lens = self.lens
        if int(lens.max()) == 1:
            return self.slots, self.begins
        return np.repeat(self.slots, lens), offsets(lens) + np.repeat(self.begins, lens)

    def behind(self, row: int) -> Spans:
        """The rows from `row` on."""
        return Spans(self.slots[row:], self.begins[row:], self.ends[row:])


class FeatureStore:
    """Of one module. All methods enqueue work and wait for nothing."""

    def __init__(
        self,
        ring: torch.Tensor,  # (num_slots, window, feature_size)
        page_ends: torch.Tensor,  # (num_pages, feature_size)
        page_table: torch.Tensor,  # (num_slots, max_pages) int32
        page_size: int,
        stream: Stream,
    ) -> None:
        self.window = ring.shape[1]
        self._ring = ring.view(-1, ring.shape[2])
        self._page_ends = page_ends
        self._table = page_table.view(-1)
        self._table_width = page_table.shape[1]
        self._page_size = page_size
        self._stream = stream

    def before(self, slots: Int32, positions: Int32) -> torch.Tensor:
        """(n, feature_size) of the position before each of `positions` (n,), which is among the slot's latest."""
        (at,) = self._stream.stage([self._in_ring(slots, positions - 1)])
        return self._ring.index_select(0, at)

    def write(
        self, spans: Spans, features: torch.Tensor, first_row: int | None = None
    ) -> torch.Tensor | None:
        """Keep `features` (spans.num_tokens, feature_size). With `first_row`: returns those before every position of
        the rows from there on, (..., feature_size); what is before position 0 means nothing."""
        slots, positions = spans.tokens()
        closing = np.flatnonzero((positions + 1) % self._page_size == 0)
        arrays = [closing, self._in_table(slots[closing], positions[closing])]
        everything = int(spans.lens.max()) <= self.window
        if everything:
            arrays.append(self._in_ring(slots, positions))
        else:
            kept = np.flatnonzero(positions >= np.repeat(spans.ends - np.int32(self.window), spans.lens))
            arrays += [self._in_ring(slots[kept], positions[kept]), kept]
        rest = None if first_row is None else spans.behind(first_row)
        if rest is not None:
            opening = np.flatnonzero((rest.begins % self._page_size == 0) & (rest.begins > 0))
            arrays += [self._in_ring(rest.slots, rest.begins - 1), opening]
            arrays.append(self._in_table(rest.slots[opening], rest.begins[opening] - 1))
            arrays.append(self._sources(spans, rest))
        closing_on, closing_pages, ring_on, *others = self._stream.stage(arrays)
        latest = features if everything else features.index_select(0, others.pop(0))
        if rest is not None:
            before, opening_on, opening_pages, sources = others
            first = self._ring.index_select(0, before)
        self._ring.index_copy_(0, ring_on, latest)
        if closing.size:
            pages = self._table.index_select(0, closing_pages)
            self._page_ends.index_copy_(0, pages.long(), features.index_select(0, closing_on))
        if rest is None:
            return None
        if opening.size:
            pages = self._table.index_select(0, opening_pages)
            first.index_copy_(0, opening_on, self._page_ends.index_select(0, pages))
        return torch.cat((first, features)).index_select(0, sources)

    def _sources(self, spans: Spans, rest: Spans) -> np.ndarray:
        """Rows of (those before the rows of `rest`, then all of `spans`) that come before each position of `rest`."""
        count = len(rest.slots)
        sources = np.arange(spans.num_tokens - rest.num_tokens, spans.num_tokens, dtype=np.int64) - 1 + count
        starts = np.cumsum(rest.lens) - rest.lens
        sources[starts] = np.arange(count)
        return sources

    def _in_ring(self, slots: Int32, positions: Int32) -> np.ndarray:
        return slots.astype(np.int64) * self.window + positions % self.window

    def _in_table(self, slots: Int32, positions: Int32) -> np.ndarray:
        return slots.astype(np.int64) * self._table_width + positions // self._page_size
