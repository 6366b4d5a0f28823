"""A front end in the engine's own process: what is said to an `EngineCore`, and what is heard from it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue

import numpy as np
from penstock.scheduler.messages import EngineStatus, StepOutput

PATIENCE_S = 60.0


class Link:
    """A front end in the same process: messages in, and everything that was said to it."""

    def __init__(self) -> None:
        self.num_frontends = 1
        self._incoming: deque = deque()
        self._woken = threading.Event()
        self.heard: SimpleQueue = SimpleQueue()
        self.load = SimpleQueue()

    def say(self, message: object) -> None:
        self._incoming.append(message)
        self.wake()

    def receive(self) -> Iterator:
        while self._incoming:
            yield 0, self._incoming.popleft()

    def wait(self, timeout_ms: int) -> None:
        self._woken.wait(timeout_ms / 1000)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def send(self, frontend_id: int, message: object) -> None:
        (self.load if isinstance(message, EngineStatus) else self.heard).put(message)

    def broadcast(self, message: object) -> None:
        pass

    def next(self) -> object:
        return self.heard.get(timeout=PATIENCE_S)

    def tokens_until_finished(self, count: int) -> dict[int, list[int]]:
        """The tokens of each request until `count` finished."""
        tokens: dict[int, list[int]] = {}
        finished = 0
        while finished < count:
            output = self.next()
            assert isinstance(output, StepOutput)
            new = iter(np.frombuffer(output.tokens, "<i4").tolist())
            counts = np.frombuffer(output.counts, "<u2").tolist()
            for request_id, size in zip(
                np.frombuffer(output.request_ids, "<u4").tolist(), counts, strict=True
            ):
                tokens.setdefault(request_id, []).extend(next(new) for _ in range(size))
            finished += len(output.finished)
        return tokens

    def until_finished(self, count: int) -> tuple[dict[int, str], list[int]]:
        """Reasons by request, and the requests in the order of their first tokens, until `count` finished."""
        reasons: dict[int, str] = {}
        order: list[int] = []
        while len(reasons) < count:
            output = self.next()
            assert isinstance(output, StepOutput)
            order += [first.request_id for first in output.first]
            reasons |= {finish.request_id: finish.reason for finish in output.finished}
        return reasons, order
