"""Which running requests decode in the next step, how many drafts each may have verified, and the pages it writes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import Bool, Int32, Rows
from .kv_cache import KVCache
from .slots import Phase, SlotTable
from .stages import Stages

PATIENCE = 4  # steps without drafts after which not every step has room for them
MAX_PAUSE = 16  # at least one step in so many has


@dataclass(slots=True)
class DecodeRows:
    """Rows of a step, each with one token and up to `drafts` more; int32 (n,).

    `starts` are the positions of the first tokens if every draft in flight is accepted. `drafts` None: no row may
    draft, and none is in flight.
    """

    slots: Int32
    starts: Int32
    drafts: Int32 | None

    @property
    def num_tokens(self) -> int:
        return self.slots.size + (int(self.drafts.sum()) if self.drafts is not None else 0)


class DecodePlanner:
    """Plans the decodes of a step: rows first come to be known here, with their pages taken and slots moved on."""

    def __init__(
        self,
        slots: SlotTable,
        kv: KVCache,
        *,
        max_num_batched_tokens: int,
        max_draft_tokens: int,
        stages: Stages | None = None,  # of a pipeline
    ) -> None:
        self._slots = slots
        self._kv = kv
        self._max_tokens = max_num_batched_tokens
        self._max_drafts = max_draft_tokens
        self._stages = stages
        self._fruitless = 0  # steps in a row in which nobody had anything verified that might have had
        self._without = 0  # steps in a row without room for drafts

    def expect_drafts(self) -> None:
        """Something has changed: there may be drafts again."""
        self._fruitless = 0

    def drafted(self, num_tokens: int) -> None:
        """What became of a step with room for drafts."""
        self._fruitless = 0 if num_tokens else self._fruitless + 1

    def plan(self, give_way: Callable[[], None]) -> DecodeRows:
        """The decodes of the next step. `give_way` preempts a running request, for its pages.

        Pages are taken for all drafts a row may verify. Where they are short nobody drafts in this step.
        """
        state, kv = self._slots, self._kv
        slots, starts = self._ready()
        if not slots.size:
            return DecodeRows(slots, starts, None)
        drafts = self._drafts(slots, starts) if self._max_drafts else None
        kv.give_back(slots, starts if drafts is None else starts - state.doubt[slots])
        ends = starts + np.int32(1) if drafts is None else starts + drafts + np.int32(1)
        rows, counts = kv.lacking(slots, ends)
        if rows.size:
            if counts.sum() > kv.available():
                slots, starts, rows, counts = self._make_room(give_way)
                if drafts is not None:
                    drafts = np.zeros(slots.size, np.int32)
                ends = starts + np.int32(1)
            if rows.size:
                kv.grow_rows(slots[rows], counts)
        ending = starts >= state.limit[slots] - 2
        if drafts is not None:
            doubt = state.doubt[slots]
            ending = starts - doubt >= state.limit[slots] - 2
            state.doubt[slots] += drafts
            if not drafts.any() and not doubt.any():
                drafts = None
        state.computed[slots] = ends
        if ending.any():
            state.drain(slots[ending])
        return DecodeRows(slots, starts, drafts)

    def _ready(self) -> tuple[Int32, Int32]:
        """Slots and positions of all that may decode: if drafts in flight may end a request, that is waited for."""
        state = self._slots
        slots = state.decodes()
        if self._stages is not None:
            slots = self._stages.share(slots)
        starts: Int32 = state.computed[slots]
        if self._max_drafts:
            ready = starts <= state.limit[slots] - 2
            if not ready.all():
                return slots[ready], starts[ready]
        return slots, starts

    def _drafts(self, slots: Int32, starts: Int32) -> Int32:
        """(n,) how many tokens besides its next one each row may verify: none beyond the end of its request.

        A step with room for drafts costs the time in which they are looked for, and cannot begin before the one before
        it is over. So where there were none for some steps, only one step in a few has room for them.
        """
        pause = min(MAX_PAUSE, 1 << max(0, self._fruitless - PATIENCE)) - 1
        if self._without < pause:
            self._without += 1
            return np.zeros(slots.size, np.int32)
        self._without = 0
        room = self._slots.limit[slots] - np.int32(2) - starts
        drafts: Int32 = np.minimum(room, np.int32(self._max_drafts))
        left = self._max_tokens - slots.size
        if drafts.sum() > left:
            drafts = np.clip(left - (np.cumsum(drafts) - drafts), 0, drafts).astype(np.int32)
        return drafts

    def _make_room(self, give_way: Callable[[], None]) -> tuple[Int32, Int32, Rows, Int32]:
        """Slots and positions of the decodes that can have their page now, and which of them lack how many.

        Pages of requests that end at a commit to come, or that may turn out to need fewer, are waited for: until then
        the last in rank of those that lack a page pause. Otherwise running requests give way until the rest fits.
        """
        state, kv = self._slots, self._kv
        while True:
            slots, starts = self._ready()
            rows, counts = kv.lacking(slots, starts + np.int32(1))
            short = int(counts.sum()) - kv.available()
            if short <= 0:
                return slots, starts, rows, counts
            if (state.phase == Phase.DRAIN).any() or state.doubt[slots].any():
                assert (counts == 1).all(), "a row without drafts lacks one page"
                last = sorted(rows.tolist(), key=lambda row: state.request_in(int(slots[row])).rank)[-short:]
                keep: Bool = np.ones(slots.size, np.bool_)
                keep[last] = False
                slots, starts = slots[keep], starts[keep]
                return slots, starts, *kv.lacking(slots, starts + np.int32(1))
            give_way()
