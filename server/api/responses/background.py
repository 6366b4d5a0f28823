"""Responses that are made in the background: the tasks of this front end, and what ends them early."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from .store import ResponseStore

log = logging.getLogger(__name__)

POLL_S = 0.2  # how soon a cancellation that reached another front end is noticed


class BackgroundResponses:
    """`store` says which of them are wanted; a task that is not named there any more is ended."""

    def __init__(self, store: ResponseStore, frontend_id: int, *, alone: bool) -> None:
        self._store = store
        self._frontend_id = frontend_id
        self._alone = alone
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._poller: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """What this front end's predecessor was making when it died has failed."""
        await self._store.fail_abandoned(
            self._frontend_id, {"code": "server_error", "message": "the front end that made it has died"}
        )

    def start(self, id: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[id] = task
        task.add_done_callback(lambda _: self._tasks.pop(id, None))
        task.add_done_callback(report)
        if not self._alone and self._poller is None:
            self._poller = asyncio.create_task(self._poll())

    def stop(self, id: str) -> None:
        """End it, if it is one of this front end."""
        task = self._tasks.get(id)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """The server is ending, and the store with it."""
        tasks = [*self._tasks.values(), *([self._poller] if self._poller is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self) -> None:
        """Other front ends cancel in the store; no message goes from one to another."""
        while self._tasks:
            await asyncio.sleep(POLL_S)
            before = list(self._tasks)
            wanted = await self._store.still_running(self._frontend_id)
            for id in before:
                if id not in wanted:
                    self.stop(id)
        self._poller = None


def report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a background response broke", exc_info=task.exception())
