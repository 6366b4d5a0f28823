"""What an engine has counted over all its incarnations, and in the last minute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from itertools import zip_longest

from ...scheduler.messages import ITERATION_TOKENS_BUCKETS, EngineLoad, EngineStatus

WINDOW_S = 60.0


class EngineHistory:
    """Fed with every status of one engine. `counters` are the fields of `EngineLoad` that only grow."""

    def __init__(self, counters: Iterable[str]) -> None:
        self.incarnation: int | None = None
        self.latest = EngineLoad()
        self._counters = tuple(counters)
        self._base = dict.fromkeys(self._counters, 0.0)  # of earlier incarnations
        self._base_buckets = [0] * (len(ITERATION_TOKENS_BUCKETS) + 1)
        self._base_accepted_at: list[int] = []
        self._window: deque[tuple[float, dict[str, float]]] = deque()

    def add(self, status: EngineStatus) -> None:
        if status.incarnation != self.incarnation:
            self._base = {name: self.counter(name) for name in self._counters}
            self._base_buckets, self._base_accepted_at = self.buckets(), self.accepted_at()
            self.incarnation = status.incarnation
        self.latest = status.load
        now = time.monotonic()
        self._window.append((now, {name: self.counter(name) for name in self._counters}))
        while len(self._window) > 2 and self._window[1][0] < now - WINDOW_S:
            self._window.popleft()

    def counter(self, name: str) -> float:
        """Over all incarnations, so that it never falls."""
        return self._base[name] + float(getattr(self.latest, name))

    def buckets(self) -> list[int]:
        """Steps per bucket of their tokens."""
        latest = self.latest.iteration_tokens or [0] * len(self._base_buckets)
        return [base + count for base, count in zip(self._base_buckets, latest, strict=True)]

    def accepted_at(self) -> list[int]:
        """[i]: drafts that were right up to their token i, that one included."""
        parts = zip_longest(self._base_accepted_at, self.latest.accepted_at, fillvalue=0)
        return [base + count for base, count in parts]

    def recent(self, *names: str) -> tuple[float, ...]:
        """These counters' growth in the last minute; their whole life's if the last of them did not grow."""
        if not self._window:
            return (0.0,) * len(names)
        then, now = self._window[0][1], self._window[-1][1]
        if now[names[-1]] > then[names[-1]]:
            return tuple(now[name] - then[name] for name in names)
        return tuple(now[name] for name in names)
