"""Who is admitted next: a policy picks one waiting request; if it does not fit yet, nobody overtakes it this step.

A policy looks at no more than `WINDOW` requests of lowest rank per pick, and lets at most `MAX_OVERTAKES` admissions
go past the request at the head of the queue before that one must be picked: the request at place k of the queue is
admitted after at most k * MAX_OVERTAKES others, so none starves behind later arrivals of its own priority.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from .messages import Policy
from .requests import Request
from .waiting import WaitingQueue

WINDOW = 64
MAX_OVERTAKES = 64

CachedTokens: TypeAlias = Callable[[Request], int]
Pick: TypeAlias = Callable[[WaitingQueue, CachedTokens], Request]


def fcfs(queue: WaitingQueue, cached_tokens: CachedTokens) -> Request:
    """First come, first served within each priority (lower value first)."""
    return queue.head


def lpm(queue: WaitingQueue, cached_tokens: CachedTokens) -> Request:
    """Longest cached prefix first within the lowest priority value that waits; ties by arrival.

    Requests that share a prefix so run together, while it is in the cache (Zheng et al., SGLang, section 3).
    """
    head = queue.head
    if queue.overtaken >= MAX_OVERTAKES:
        return head
    return max(
        (request for request in queue.first(WINDOW) if request.priority == head.priority), key=cached_tokens
    )


def wspt(queue: WaitingQueue, cached_tokens: CachedTokens) -> Request:
    """Weighted shortest processing time: largest weight / uncached tokens first; ties by rank (Smith 1956).

    The weight of priority p is 1 - p for p <= 0 and 1 / (1 + p) above: 1 at the default, more for lower values.
    """
    if queue.overtaken >= MAX_OVERTAKES:
        return queue.head

    def value(request: Request) -> float:
        weight = 1 - request.priority if request.priority <= 0 else 1 / (1 + request.priority)
        return weight / max(1, len(request.tokens) - cached_tokens(request))

    return max(queue.first(WINDOW), key=value)


POLICIES: dict[Policy, Pick] = {"fcfs": fcfs, "lpm": lpm, "wspt": wspt}
