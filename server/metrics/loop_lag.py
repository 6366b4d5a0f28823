"""How late the event loop runs what is due: what a token waits for in the front end besides its own work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .catalogue import Metrics

BUSY_INTERVAL_S = 0.01
IDLE_INTERVAL_S = 1.0


class LoopLag:
    """A timer that compares when it was due with when it ran. It samples finely while requests are in flight, and
    costs a wake-up a second while there are none."""

    def __init__(self, metrics: Metrics, busy: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._busy = busy
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """From now on, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._wait()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        interval = BUSY_INTERVAL_S if self._busy() else IDLE_INTERVAL_S
        self._due = time.monotonic() + interval
        self._timer = self._loop.call_later(interval, self._run)

    def _run(self) -> None:
        self._metrics.observe("penstock:event_loop_lag_seconds", max(0.0, time.monotonic() - self._due))
        self._wait()
