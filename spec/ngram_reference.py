"""Drafts from texts in plain Python, where the C++ of kernels/cpu/ngram.cpp cannot be had: the same results, slower."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .predicted_text import PredictedText
from .suffix_automaton import Place, SuffixAutomaton

Int32: TypeAlias = npt.NDArray[np.int32]

RECENT = 32  # tokens that other texts are searched for
LONGEST_OUTPUT = 16384  # tokens of one answer that go into a pool
END_OF_TEXT = -1
PREDICTED_UNSURE, PREDICTED = 4, 5  # sources beside the lengths of matches


class Window:
    """The last `size / 2` to `size` tokens of a text."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.text = SuffixAutomaton()
        self._young = SuffixAutomaton()

    def append(self, token: int) -> None:
        self.text.append(token)
        if len(self.text) > self._size // 2:
            self._young.append(token)
        if len(self.text) >= self._size:
            self.text, self._young = self._young, SuffixAutomaton()


class Slot:
    def __init__(self, window: int) -> None:
        self.text = Window(window)
        self.waiting: deque[int] = deque()
        self.recent: deque[int] = deque(maxlen=RECENT)
        self.predicted: PredictedText | None = None
        self.drafted: list[int] = []  # the head of the last draft that was as predicted
        self.num_output = 0
        self.accepted = 0
        self.rejected = 0
        self.pool = -1
        self.output: list[int] = []


class PythonNgram:
    """See `CpuNgram`, whose methods these are."""

    def __init__(
        self, num_slots: int, *, least: int, most: int, window: int, pools: int, pool_window: int
    ) -> None:
        self._least, self._most, self._window, self._pool_window = least, most, window, pool_window
        self._slots = [Slot(window) for _ in range(num_slots)]
        self._pools = [Window(pool_window) for _ in range(pools)]
        self._queue: list[int] = []  # slots with waiting tokens, in order

    def start(self, slot: int, tokens: Int32, num_prompt: int, pool: int) -> None:
        state = self._slots[slot]
        state.waiting.extend(tokens[-self._window :].tolist())
        if state.waiting:
            self._queue.append(slot)
        state.recent.extend(tokens[-RECENT:].tolist())
        state.pool = pool
        if pool >= 0:
            state.output = tokens[num_prompt:][:LONGEST_OUTPUT].tolist()

    def predict(self, slot: int, prediction: Int32, output: Int32) -> None:
        state = self._slots[slot]
        state.predicted = PredictedText(prediction.tolist()) if len(prediction) else None
        said = output.tolist()
        for i in range(len(said) if state.predicted else 0):
            assert state.predicted is not None
            state.predicted.follow(said[max(0, i + 1 - RECENT) : i + 1])
        state.num_output = len(said)

    def stop(self, slot: int) -> None:
        state = self._slots[slot]
        if state.output:
            for token in (*state.output, END_OF_TEXT):
                self._pools[state.pool].append(token)
        if slot in self._queue:
            self._queue.remove(slot)
        self._slots[slot] = Slot(self._window)

    def clear_pool(self, pool: int) -> None:
        self._pools[pool] = Window(self._pool_window)

    def ingest(self, budget: int) -> int:
        while self._queue and budget > 0:
            state = self._slots[self._queue[0]]
            while state.waiting and budget > 0:
                state.text.append(state.waiting.popleft())
                budget -= 1
            if not state.waiting:
                self._queue.pop(0)
        return sum(len(self._slots[slot].waiting) for slot in self._queue)

    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None) -> None:
        said, end = tokens.tolist(), 0
        for i, slot in enumerate(slots.tolist()):
            begin, end = end, end + int(counts[i])
            self._extend(self._slots[slot], said[begin:end], -1 if verified is None else int(verified[i]))

    def _extend(self, state: Slot, said: list[int], verified: int) -> None:
        drafted = state.drafted if verified < 0 else state.drafted[:verified]
        state.rejected += len(drafted) - common(drafted, said)
        state.drafted = []
        for token in said:
            if state.waiting:
                state.waiting.append(token)
            else:
                state.text.append(token)
            state.recent.append(token)
            if state.predicted is not None:
                state.num_output += 1
                recent = list(state.recent)[-min(state.num_output, RECENT) :]
                state.accepted += state.predicted.follow(recent)
        if state.pool >= 0:
            state.output += said[: LONGEST_OUTPUT - len(state.output)]

    def propose(self, slots: Int32, most: Int32) -> tuple[Int32, Int32, Int32]:
        counts, sources, tokens = [], [], []
        for slot, limit in zip(slots.tolist(), most.tolist(), strict=True):
            state = self._slots[slot]
            draft, source = self._draft(state, limit)
            if state.predicted is not None:
                state.drafted = draft[: common(draft, state.predicted.draft(len(draft)))]
            counts.append(len(draft))
            sources.append(source)
            tokens += draft
        return np.array(counts, np.int32), np.array(sources, np.int32), np.array(tokens, np.int32)

    def _draft(self, state: Slot, limit: int) -> tuple[list[int], int]:
        place, text = Place(), None
        if not state.waiting:
            text = state.text.text
            place = text.suffix(self._most)
        if state.pool >= 0:
            pool = self._pools[state.pool].text
            other = pool.settle(pool.find(list(state.recent)[-min(self._most, RECENT) :]))
            if other.matched > place.matched:
                text, place = pool, other
        if place.matched < self._least:
            text = None
        if state.predicted is not None and (text is None or state.predicted.matched >= place.matched):
            # Of equals the prediction: it was given for this answer.
            draft = state.predicted.draft(limit)
            if draft:
                return draft, PREDICTED if state.predicted.is_sure else PREDICTED_UNSURE
        draft = [] if text is None else text.follow(place, self._least, limit)
        return draft, sum(place.matched >= length for length in (4, 8, 16))

    def predicted(self, slots: Int32) -> tuple[Int32, Int32]:
        states = [self._slots[slot] for slot in slots.tolist()]
        accepted = np.array([state.accepted for state in states], np.int32)
        return accepted, np.array([state.rejected for state in states], np.int32)

    def memory_bytes(self, slot: int) -> int:
        """Not known here."""
        return 0


def common(some: list[int], others: list[int]) -> int:
    """How many tokens both begin with."""
    n = 0
    while n < min(len(some), len(others)) and some[n] == others[n]:
        n += 1
    return n
