"""Who waits for admission, in order of rank: priority, then arrival."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice

from .requests import Request, State

Rank = tuple[int, float, int]


class WaitingQueue:
    """A sorted list of waiting requests; preempted ones return to the place that their arrival gives them.

    `overtaken` counts the admissions that went past the present head; policies bound it.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Rank, Request]] = []
        self.num_tokens = 0
        self.num_preempted = 0
        self.overtaken = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._entries)

    @property
    def num_new(self) -> int:
        """Waiting requests that were never admitted: what the bound on the queue counts."""
        return len(self._entries) - self.num_preempted

    @property
    def head(self) -> Request:
        return self._entries[0][1]

    def first(self, count: int) -> Iterator[Request]:
        """The `count` requests of lowest rank, in order."""
        return (request for _, request in islice(self._entries, count))

    def push(self, request: Request) -> None:
        entry = (request.rank, request)
        if self._entries and entry[0] < self._entries[0][0]:
            self.overtaken = 0
        insort(self._entries, entry, key=_rank)
        self.num_tokens += len(request.tokens)
        self.num_preempted += request.state is State.PREEMPTED

    def remove(self, request: Request) -> None:
        index = bisect_left(self._entries, request.rank, key=_rank)
        assert self._entries[index][1] is request
        del self._entries[index]
        self.num_tokens -= len(request.tokens)
        self.num_preempted -= request.state is State.PREEMPTED
        if index == 0:
            self.overtaken = 0

    def admitted(self, request: Request) -> None:
        """Remove a request that was admitted, counting whom it overtook."""
        overtaken = self.overtaken + 1
        passes = request is not self.head
        self.remove(request)
        if passes:
            self.overtaken = overtaken


def _rank(entry: tuple[Rank, Request]) -> Rank:
    return entry[0]
