"""What is known of grammars that have been compiled before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import msgspec

from ...scheduler.messages import GrammarSpec
from .attempt import Verdict

MAX_VERDICTS = 16_384  # of a digest and at most one line each: 12 MiB when all are refusals
# A busy machine may have been the cause, so the next one to ask may find it otherwise.
PASSING = ("timeout", "crash")
PASSING_S = 60.0


class Verdicts:
    """Least recently used ones are forgotten first. Times in monotonic seconds."""

    def __init__(self, capacity: int = MAX_VERDICTS) -> None:
        self._capacity = capacity
        self._known: OrderedDict[bytes, tuple[Verdict, float]] = OrderedDict()

    def get(self, key: bytes, now: float) -> Verdict | None:
        known = self._known.get(key)
        if known is None:
            return None
        verdict, found_at = known
        if verdict.outcome in PASSING and now - found_at > PASSING_S:
            del self._known[key]
            return None
        self._known.move_to_end(key)
        return verdict

    def put(self, key: bytes, verdict: Verdict, now: float) -> None:
        self._known[key] = (verdict, now)
        self._known.move_to_end(key)
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)


def digest(spec: GrammarSpec) -> bytes:
    """16 bytes that stand for a grammar of any length."""
    return hashlib.blake2b(msgspec.msgpack.encode(spec), digest_size=16).digest()
