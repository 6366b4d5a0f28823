"""Drafts from texts, in C++: all slots of an engine behind calls that take a whole batch (ngram.cpp)."""

from __future__ import annotations

import weakref
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .library import Library

Int32: TypeAlias = npt.NDArray[np.int32]


class CpuNgram:
    """Contexts of `least` to `most` tokens; the last `window` tokens of a slot's text, `pool_window` of a pool.

    Arrays are int32, contiguous and one-dimensional. Not for several threads at once.
    """

    def __init__(
        self,
        library: Library,
        num_slots: int,
        *,
        least: int,
        most: int,
        window: int,
        pools: int,
        pool_window: int,
    ) -> None:
        self._quick, self._long = library.quick, library.long
        self._state = self._quick["ngram_new"](num_slots, least, most, window, pools, pool_window)
        weakref.finalize(self, self._quick["ngram_free"], self._state)

    def start(self, slot: int, tokens: Int32, num_prompt: int, pool: int) -> None:
        """The slot's text so far, taken in by `ingest`; `pool` -1 for none."""
        self._quick["ngram_start"](self._state, slot, address(tokens), len(tokens), num_prompt, pool)

    def predict(self, slot: int, prediction: Int32, output: Int32) -> None:
        """What the slot's answer is expected to be, and what of the answer is there."""
        self._quick["ngram_predict"](
            self._state, slot, address(prediction), len(prediction), address(output), len(output)
        )

    def stop(self, slot: int) -> None:
        """Forget the slot; its output goes into its pool."""
        self._long["ngram_stop"](self._state, slot)

    def clear_pool(self, pool: int) -> None:
        """Forget what is in a pool."""
        self._quick["ngram_clear_pool"](self._state, pool)

    def ingest(self, budget: int) -> int:
        """Take in up to `budget` tokens of texts that were started; returns how many are left."""
        return int(self._long["ngram_ingest"](self._state, budget))

    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None) -> None:
        """slots (n,) got counts (n,) of `tokens` (sum counts,); verified (n,) tokens of their drafts were looked at."""
        looked_at = None if verified is None else address(verified)
        self._quick["ngram_extend"](
            self._state, len(slots), address(slots), address(counts), address(tokens), looked_at
        )

    def propose(self, slots: Int32, most: Int32) -> tuple[Int32, Int32, Int32]:
        """Up to most (n,) tokens for each of slots (n,): counts (n,), sources (n,), tokens (sum counts,)."""
        counts, sources = np.empty(len(slots), np.int32), np.empty(len(slots), np.int32)
        tokens = np.empty(int(most.sum()), np.int32)
        total = self._quick["ngram_propose"](
            self._state,
            len(slots),
            address(slots),
            address(most),
            address(counts),
            address(sources),
            address(tokens),
        )
        return counts, sources, tokens[:total]

    def predicted(self, slots: Int32) -> tuple[Int32, Int32]:
        """Per slot since its start: output tokens as predicted (n,), predicted draft tokens that were refused (n,)."""
        accepted, rejected = np.empty(len(slots), np.int32), np.empty(len(slots), np.int32)
        self._quick["ngram_predicted"](
            self._state, len(slots), address(slots), address(accepted), address(rejected)
        )
        return accepted, rejected

    def memory_bytes(self, slot: int) -> int:
        """What the slot's text and prediction take."""
        return int(self._quick["ngram_bytes"](self._state, slot))


def address(array: Int32) -> int:
    """Of an int32 array's first number."""
    assert array.dtype == np.int32
    assert array.flags.c_contiguous
    return int(array.ctypes.data)
