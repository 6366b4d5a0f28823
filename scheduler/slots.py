"""What every running request's progress is, as arrays over slots, so that a step is a few vectorised operations."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .arrays import Bool, Int32
from .repetition import Repetition
from .requests import Request

_NARROW = 16  # stop ids per slot that are compared vectorised; requests with more are looked up one by one


class Phase(IntEnum):
    FREE = 0
    PREFILL = 1  # known tokens are still to be computed
    DECODE = 2  # a token per step, or more with drafts
    DRAIN = 3  # its last step is planned; only the commit is missing


PHASES: dict[Phase, frozenset[Phase]] = {
    Phase.FREE: frozenset({Phase.PREFILL}),
    Phase.PREFILL: frozenset({Phase.DECODE, Phase.DRAIN, Phase.FREE}),
    Phase.DECODE: frozenset({Phase.DRAIN, Phase.FREE}),
    Phase.DRAIN: frozenset({Phase.FREE}),
}


@dataclass(slots=True)
class Appended:
    """What became of new tokens: `kept` (n,) of each slot, `tokens` (sum of kept,) flat, and per slot whether its last
    one is a stop token, whether its output goes round in circles, and whether its request ends."""

    kept: Int32
    tokens: Int32
    stopped: Bool
    repeats: Bool
    ends: Bool


class SlotTable:
    """Arrays over slots (int32 unless said), valid where phase is not FREE.

    `tokens` (num_slots, max_model_len): what the host knows. `known`: how many of them. `computed`: positions whose
    KV is computed or planned, if every draft in flight is accepted; up to `doubt` fewer, if none is. `limit`: tokens at
    which the request ends. A decode row at position p draws token p+1, so the last row that may be planned starts at
    `limit - 2`.
    """

    def __init__(self, num_slots: int, max_model_len: int) -> None:
        self.num_slots = num_slots
        self.tokens: Int32 = np.zeros((num_slots, max_model_len), np.int32)  # pages appear when first written
        self.phase: npt.NDArray[np.int8] = np.zeros(num_slots, np.int8)
        self.known: Int32 = np.zeros(num_slots, np.int32)
        self.computed: Int32 = np.zeros(num_slots, np.int32)
        self.doubt: Int32 = np.zeros(num_slots, np.int32)
        self.limit: Int32 = np.zeros(num_slots, np.int32)
        self.frontend_ids: Int32 = np.zeros(num_slots, np.int32)
        self.request_ids: npt.NDArray[np.uint32] = np.zeros(num_slots, np.uint32)
        self.requests: list[Request | None] = [None] * num_slots
        self._stop_after: Int32 = np.zeros(num_slots, np.int32)  # stop tokens count from this many tokens on
        self._always_stops: Bool = np.zeros(
            num_slots, np.bool_
        )  # a grammar comes to its end before min_tokens
        self._stop_ids: Int32 = np.full((num_slots, 1), -1, np.int32)
        self._many_stop_ids: dict[int, frozenset[int]] = {}
        self._repetition: dict[int, Repetition] = {}
        self.num_live = 0  # slots with a request
        self._free = list(range(num_slots - 1, -1, -1))
        self._resting: deque[tuple[int, int]] = deque()  # (step that still names it, slot)
        self._left: list[int] = []
        self._decodes: Int32 | None = None

    # --------------------------------------------------------------------------------------------------- coming, going

    @property
    def num_free(self) -> int:
        return len(self._free)

    def assign(self, request: Request, limit: int) -> int:
        """A free slot for `request`, in phase PREFILL with nothing computed."""
        slot = self._free.pop()
        sampling = request.sampling
        count = len(request.tokens)
        self.tokens[slot, :count] = request.tokens
        self.known[slot] = count
        self.computed[slot] = 0
        self.doubt[slot] = 0
        self.limit[slot] = limit
        self.frontend_ids[slot] = request.frontend_id
        self.request_ids[slot] = request.request_id
        self.requests[slot] = request
        self._stop_after[slot] = request.num_prompt_tokens + sampling.min_tokens
        self._always_stops[slot] = sampling.grammar is not None
        self._set_stop_ids(slot, sampling.stop_token_ids)
        if sampling.repetition_detection is not None:
            output = request.tokens[request.num_prompt_tokens :]
            self._repetition[slot] = Repetition(sampling.repetition_detection, output)
        request.slot = slot
        self.num_live += 1
        self.move(slot, Phase.PREFILL)
        return slot

    def free(self, slot: int, newest_step: int | None) -> None:
        """Give the slot up; it rests until `newest_step`, which may still name it, was committed (None: no step)."""
        request = self.requests[slot]
        assert request is not None
        request.slot = -1
        self.requests[slot] = None
        self._many_stop_ids.pop(slot, None)
        self._repetition.pop(slot, None)
        self.move(slot, Phase.FREE)
        self._left.append(slot)
        self.num_live -= 1
        if newest_step is None:
            self._free.append(slot)
        else:
            self._resting.append((newest_step, slot))

    def left(self) -> list[int]:
        """The slots that were given up since the last call."""
        left, self._left = self._left, []
        return left

    def wake(self, step: int) -> None:
        """Step `step` was committed: slots that only it and earlier ones named are free."""
        while self._resting and self._resting[0][0] <= step:
            self._free.append(self._resting.popleft()[1])

    def wake_all(self) -> None:
        """No step is in flight any more."""
        self._free.extend(slot for _, slot in self._resting)
        self._resting.clear()

    def move(self, slot: int, phase: Phase) -> None:
        """Enter `phase`; an illegal transition is a bug."""
        before = Phase(int(self.phase[slot]))
        assert phase in PHASES[before], f"slot {slot}: {before.name} -> {phase.name}"
        self.phase[slot] = phase
        self._decodes = None

    def drain(self, slots: Int32) -> None:
        """The last step of these decoding slots is planned."""
        self.phase[slots] = Phase.DRAIN
        self._decodes = None

    # --------------------------------------------------------------------------------------------------------- reading

    def request_in(self, slot: int) -> Request:
        request = self.requests[slot]
        assert request is not None, f"slot {slot} is empty"
        return request

    def decodes(self) -> Int32:
        """The slots in phase DECODE; the array is never written to again."""
        if self._decodes is None:
            self._decodes = np.flatnonzero(self.phase == Phase.DECODE).astype(np.int32)
        return self._decodes

    def running(self) -> Iterator[tuple[int, Request]]:
        for slot in np.flatnonzero(self.phase).tolist():
            request = self.requests[slot]
            assert request is not None
            yield slot, request

    def settle(self, slots: Int32, granted: Int32, counts: Int32) -> None:
        """Rows of `slots` with up to `granted` drafts brought `counts` tokens (at least one) each."""
        self.computed[slots] -= granted + np.int32(1) - counts
        self.doubt[slots] -= granted

    def append(self, slots: Int32, counts: Int32, tokens: Int32) -> Appended:
        """New tokens for each slot: `counts` (n,) positive, `tokens` flat, up to the first that ends the request."""
        if tokens.size == slots.size:
            stopped, repeats, ends = self._append_one(slots, tokens)
            return Appended(counts, tokens, stopped, repeats, ends)
        begins = np.cumsum(counts, dtype=np.int32) - counts
        kept: Int32 = np.zeros(slots.size, np.int32)
        stopped, repeats, ends = (np.zeros(slots.size, np.bool_) for _ in range(3))
        for offset in range(int(counts.max())):
            rows = np.flatnonzero((counts > offset) & ~ends)
            if not rows.size:
                break
            stopped[rows], repeats[rows], ends[rows] = self._append_one(
                slots[rows], tokens[begins[rows] + offset]
            )
            kept[rows] += 1
        if not np.array_equal(kept, counts):
            offsets = np.arange(tokens.size, dtype=np.int32) - np.repeat(begins, counts)
            tokens = tokens[offsets < np.repeat(kept, counts)]
        return Appended(kept, tokens, stopped, repeats, ends)

    def _append_one(self, slots: Int32, tokens: Int32) -> tuple[Bool, Bool, Bool]:
        """Per slot: its new token is a stop token; its output goes round in circles; the request ends here."""
        known = self.known[slots]
        self.tokens[slots, known] = tokens
        known += 1
        self.known[slots] = known
        stopped: Bool = (self._stop_ids[slots] == tokens[:, None]).any(axis=1)
        if self._many_stop_ids:
            for row, slot in enumerate(slots.tolist()):
                ids = self._many_stop_ids.get(slot)
                if ids is not None and int(tokens[row]) in ids:
                    stopped[row] = True
        late = known > self._stop_after[slots]
        stopped &= late | self._always_stops[slots]
        full: Bool = known >= self.limit[slots]
        ends = stopped | full
        if not self._repetition:
            return stopped, np.zeros(slots.size, np.bool_), ends
        repeats: Bool = np.zeros(slots.size, np.bool_)
        for row, slot in enumerate(slots.tolist()):
            watch = self._repetition.get(slot)
            if watch is not None and watch.push(int(tokens[row])):
                repeats[row] = late[row] and not ends[row]
        return stopped, repeats, ends | repeats

    def _set_stop_ids(self, slot: int, ids: list[int]) -> None:
        self._stop_ids[slot] = -1
        if len(ids) > _NARROW:
            self._many_stop_ids[slot] = frozenset(ids)
            return
        width = self._stop_ids.shape[1]
        if len(ids) > width:
            wider = np.full((self.num_slots, len(ids) - width), -1, np.int32)
            self._stop_ids = np.concatenate([self._stop_ids, wider], axis=1)
        self._stop_ids[slot, : len(ids)] = ids

    def check(self) -> None:
        """Every slot is free, resting or has a request that knows it."""
        live = set(np.flatnonzero(self.phase).tolist())
        free, resting = set(self._free), {slot for _, slot in self._resting}
        assert len(free) + len(resting) == len(self._free) + len(self._resting)
        assert not live & free
        assert not live & resting
        assert not free & resting
        assert len(live) + len(free) + len(resting) == self.num_slots
        for slot in live:
            request = self.requests[slot]
            assert request is not None
            assert request.slot == slot
            assert self.known[slot] <= max(self.limit[slot], len(request.tokens))
            if self.phase[slot] == Phase.PREFILL:
                assert self.computed[slot] < self.known[slot]
