"""The `ngram` drafter: what followed the last time that a text was where it is now. It needs no model.

Per request a suffix automaton holds prompt and output. The longest end of the text that came before is the context;
the draft is its most frequent continuation, of equally frequent ones the latest, then the continuation of that, and so
on. A user's prediction of the answer is a second text that is followed from its start (predicted_text.py); the recent
outputs of other requests with the same salt can be a third. Drafting for a batch is one call.

A text takes 60 to 90 bytes a token as a rule and never more than `BYTES_PER_TOKEN`; of a longer one than `window` only
the end is kept, so a slot has a bound as well.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..kernels.cpu.library import load
from ..kernels.cpu.ngram import CpuNgram
from .interface import HostDrafter, Int32
from .ngram_reference import PythonNgram

logger = logging.getLogger(__name__)

NUM_SOURCES = (
    6  # contexts of less than 4, 8, 16 tokens, longer ones; predictions after a divergence, and before one
)
UNLIMITED = 2**31 - 1
NUM_POOLS = 8  # salts whose outputs are shared at a time
INGESTED_PER_STEP = 4096  # tokens of new texts: a millisecond, twice that if they repeat themselves much
INGESTED_PER_STEP_IN_PYTHON = 512
# At most 2 states of 28 bytes, one further edge of 16 and its place in a table per token, each with its room to grow;
# and while a window is renewed, a second automaton of half the tokens.
BYTES_PER_TOKEN = 180


@dataclass(frozen=True)
class NgramOptions:
    """`min_match` tokens at least must have come before, at most `max_match` are compared (None: any number).

    Of each text the last `window` tokens count. `shared_pool` is the number of tokens of recent outputs that requests
    with one salt share; 0 = none.

    Raises:
        ValueError: an option is out of its range.
    """

    min_match: int = 3
    max_match: int | None = None
    window: int = 65536
    shared_pool: int = 0

    def __post_init__(self) -> None:
        if self.min_match < 1:
            raise ValueError(f"min_match {self.min_match}: must be at least 1")
        if self.max_match is not None and self.max_match < self.min_match:
            raise ValueError(f"max_match {self.max_match}: must be at least min_match, {self.min_match}")
        if self.window < 16:
            raise ValueError(f"window {self.window}: must be at least 16")
        if self.shared_pool != 0 and self.shared_pool < 16:
            raise ValueError(f"shared_pool {self.shared_pool}: must be 0 or at least 16")


class Texts(Protocol):
    """What holds the texts: `CpuNgram` says what each method does."""

    def start(self, slot: int, tokens: Int32, num_prompt: int, pool: int) -> None: ...
    def predict(self, slot: int, prediction: Int32, output: Int32) -> None: ...
    def stop(self, slot: int) -> None: ...
    def clear_pool(self, pool: int) -> None: ...
    def ingest(self, budget: int) -> int: ...
    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None) -> None: ...
    def propose(self, slots: Int32, most: Int32) -> tuple[Int32, Int32, Int32]: ...
    def predicted(self, slots: Int32) -> tuple[Int32, Int32]: ...
    def memory_bytes(self, slot: int) -> int: ...


def ngram_drafter(num_slots: int, options: NgramOptions | None = None) -> HostDrafter:
    """The fastest one that this machine can have; compiles the kernels if nobody has yet."""
    return NgramDrafter(num_slots, options or NgramOptions(), compiled=load() is not None)


class NgramDrafter:
    """See `HostDrafter`."""

    num_sources = NUM_SOURCES

    def __init__(self, num_slots: int, options: NgramOptions, *, compiled: bool) -> None:
        least, most = options.min_match, options.max_match or UNLIMITED
        num_pools = NUM_POOLS if options.shared_pool else 0
        library = load() if compiled else None
        self._texts: Texts
        if library is None:
            self._ingested = INGESTED_PER_STEP_IN_PYTHON
            self._texts = PythonNgram(
                num_slots,
                least=least,
                most=most,
                window=options.window,
                pools=num_pools,
                pool_window=options.shared_pool,
            )
        else:
            self._ingested = INGESTED_PER_STEP
            self._texts = CpuNgram(
                library,
                num_slots,
                least=least,
                most=most,
                window=options.window,
                pools=num_pools,
                pool_window=options.shared_pool,
            )
        self._pools = SaltedPools(num_pools)
        self._pool_of: dict[int, int] = {}  # started slot -> its pool, or -1
        self._waiting = 0  # tokens of started texts that are not taken in
        self._sources: Int32 = np.empty(0, np.int32)

    def start(
        self,
        slot: int,
        tokens: Int32,
        prediction: Int32 | None = None,
        *,
        num_prompt_tokens: int | None = None,
        cache_salt: str = "",
    ) -> None:
        assert slot not in self._pool_of, f"slot {slot} is started already"
        num_prompt = len(tokens) if num_prompt_tokens is None else num_prompt_tokens
        pool, is_new = self._pools.take(cache_salt)
        if is_new:
            self._texts.clear_pool(pool)
        self._pool_of[slot] = pool
        self._texts.start(slot, tokens, num_prompt, pool)
        if prediction is not None and len(prediction):
            self._texts.predict(slot, prediction, tokens[num_prompt:])
        self._waiting += len(tokens)

    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None = None) -> None:
        self._texts.extend(slots, counts, tokens, verified)

    def propose(self, slots: Int32, max_lens: Int32) -> tuple[Int32, Int32]:
        if self._waiting:
            self.ingest(self._ingested)
        counts, self._sources, tokens = self._texts.propose(slots, max_lens)
        return counts, tokens

    def ingest(self, max_tokens: int) -> int:
        """Take in up to `max_tokens` tokens of texts that were started; returns how many wait. `propose` does so."""
        self._waiting = self._texts.ingest(max_tokens)
        return self._waiting

    def sources(self) -> Int32:
        return self._sources

    def predicted(self, slots: Int32) -> tuple[Int32, Int32]:
        return self._texts.predicted(slots)

    def stop(self, slot: int) -> None:
        pool = self._pool_of.pop(slot, None)
        if pool is not None:
            self._texts.stop(slot)
            self._pools.give_back(pool)

    def memory_bytes(self, slot: int) -> int:
        """What the slot's texts take; 0 where that is not known."""
        return self._texts.memory_bytes(slot)


class SaltedPools:
    """Which pool a salt has: a few for all salts, the least recently used without requests goes to a new salt."""

    def __init__(self, num_pools: int) -> None:
        self._salts: dict[str, int] = {}  # salt -> pool, the least recently used first
        self._users = [0] * num_pools
        self._free = list(range(num_pools))

    def take(self, salt: str) -> tuple[int, bool]:
        """(the pool for one more request with this salt, whether it must be emptied first); -1 if none can be had."""
        pool = self._salts.pop(salt, None)
        is_new = pool is None
        if pool is None:
            pool = self._free.pop() if self._free else self._evict()
            if pool is None:
                return -1, False
        self._salts[salt] = pool
        self._users[pool] += 1
        return pool, is_new

    def give_back(self, pool: int) -> None:
        """One request with the pool has ended."""
        if pool >= 0:
            self._users[pool] -= 1

    def _evict(self) -> int | None:
        for salt, pool in self._salts.items():
            if not self._users[pool]:
                del self._salts[salt]
                return pool
        return None
