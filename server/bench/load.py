"""Who sends what when: requests and conversations on their schedule, within the concurrency limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..client.http import ClientError, Disconnected, HttpClient, Malformed, Unreachable
from .arrivals import ArrivalClock
from .datasets import Conversation, Item, Message, Prompt
from .records import Live, Record, StreamRecorder

ERROR_KINDS: dict[type[ClientError], str] = {
    Unreachable: "connect",
    Disconnected: "disconnected",
    Malformed: "bad HTTP",
}


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and what each of them says besides its prompt."""

    path: str
    model: str
    fields: dict[str, Any] = field(default_factory=dict)  # temperature, ignore_eos, … and the user's own

    @property
    def chat(self) -> bool:
        return self.path.endswith("/chat/completions")

    def body(self, what: str | list[int] | list[Message], max_tokens: int) -> bytes:
        """The JSON of one request for a prompt, or (chat) for messages."""
        return msgspec.json.encode(
            {
                "model": self.model,
                "messages" if self.chat else "prompt": what,
                "max_tokens": max_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.fields,
            }
        )

    def first_body(self, item: Item) -> bytes:
        """The request of an item, or of a conversation's first turn."""
        if isinstance(item, Conversation):
            return self.body(item.turns[0], item.max_tokens)
        if not self.chat:
            return self.body(item.prompt, item.max_tokens)
        assert isinstance(item.prompt, str)
        system = [] if item.system is None else [{"role": "system", "content": item.system}]
        return self.body([*system, {"role": "user", "content": item.prompt}], item.max_tokens)


async def send(
    client: HttpClient,
    path: str,
    body: bytes,
    record: Record,
    live: Live,
    timeout: float,
    keep_text: bool = False,
) -> str:
    """One request from sending to settled record; every way to fail ends in the record. The text with `keep_text`."""
    recorder = StreamRecorder(record, live, keep_text)
    request = client.encode("POST", path, body)
    live.in_flight += 1
    live.peak_in_flight = max(live.peak_in_flight, live.in_flight)
    record.sent = perf_counter()
    try:
        async with asyncio.timeout(timeout):
            await client.exchange(request, recorder)
        recorder.complete()
    except TimeoutError:
        recorder.failed("timeout", f"no complete answer within --timeout {timeout:g} s")
    except ClientError as error:
        recorder.failed(ERROR_KINDS[type(error)], str(error))
    finally:
        live.in_flight -= 1
    live.finished += 1
    live.failed += not record.ok
    return recorder.text


class Load:
    """One run over `items`. `records` fills as requests end, and is whole when `run` returns.

    times: arrival of each item in seconds from the start (see `arrival_times`); None = all at once, in which case
        waiting for a free place under `max_concurrency` is not latency: the client itself holds the request back.
    max_concurrency: items in flight at most; a conversation counts until its last turn.
    timeout: seconds for one request.
    """

    def __init__(
        self,
        client: HttpClient,
        endpoint: Endpoint,
        items: Sequence[Item],
        *,
        times: NDArray[np.float64] | None = None,
        max_concurrency: int | None = None,
        timeout: float = 21_600.0,
        live: Live | None = None,
    ) -> None:
        assert times is None or len(times) == len(items)
        self.records: list[Record] = []
        self.live = Live() if live is None else live
        self.start = 0.0
        self._client, self._endpoint, self._items, self._times = client, endpoint, items, times
        # Encoded ahead of the run: its cost is neither the server's latency nor part of the schedule.
        self._bodies = [endpoint.first_body(item) for item in items]
        self._limit = max_concurrency or len(items)
        self._timeout = timeout
        self._waiting: deque[int] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = len(items)
        self._over = asyncio.Event()
        self._crash: BaseException | None = None  # a fault of the client itself, never of the server

    @property
    def bodies(self) -> list[bytes]:
        """Each item's first request."""
        return self._bodies

    async def run(self) -> None:
        """Send everything and wait for the answers; cancelling stops all that is in flight and drops it."""
        self.start = perf_counter()
        try:
            if self._times is None:
                self._waiting.extend(range(len(self._items)))
                self._fill()
                await self._over.wait()
            else:
                loop = asyncio.get_running_loop()
                with ArrivalClock(loop, self.start, self._times, self._arrive):
                    await self._over.wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._crash is not None:
            raise self._crash

    def _arrive(self, index: int) -> None:
        self._waiting.append(index)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._tasks) < self._limit:
            task = asyncio.ensure_future(self._one(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        self._left -= 1
        self._crash = self._crash or task.exception()
        if self._crash is not None or self._left == 0:
            self._over.set()
        else:
            self._fill()

    async def _one(self, index: int) -> None:
        item = self._items[index]
        turns = len(item.turns) if isinstance(item, Conversation) else 1
        history: list[Message] = []
        body = self._bodies[index]
        for turn in range(turns):
            if isinstance(item, Conversation):
                history += item.turns[turn]
                if turn:
                    body = self._endpoint.body(history, item.max_tokens)
            record = Record(scheduled=perf_counter())
            if self._times is not None and turn == 0:
                record.scheduled = self.start + float(self._times[index])
            if isinstance(item, Prompt):
                record.prompt_tokens = item.prompt_tokens
            last = turn == turns - 1
            text = await send(
                self._client, self._endpoint.path, body, record, self.live, self._timeout, keep_text=not last
            )
            if self._times is None or turn:
                record.scheduled = record.sent
            self.records.append(record)
            if not record.ok:
                return
            history.append({"role": "assistant", "content": text})

    @property
    def num_requests(self) -> int:
        """Requests of the whole run, every turn of every conversation."""
        return sum(len(item.turns) if isinstance(item, Conversation) else 1 for item in self._items)
