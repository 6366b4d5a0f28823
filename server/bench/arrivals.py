"""When each request of a run arrives: open-loop schedules, and a clock that keeps them to a fraction of a millisecond."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> NDArray[np.float64] | None:
    """Seconds from the start of the run at which each of `count` requests arrives, ascending; the first is at 0.

    Gaps are gamma-distributed with mean 1/`rate` and shape `burstiness`: 1 is a Poisson process, less is burstier,
    more is steadier. None when `rate` is infinite: every request is there from the start.
    """
    assert rate > 0
    assert burstiness > 0
    if math.isinf(rate):
        return None
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), size=max(0, count - 1))
    return np.concatenate(([0.0], np.cumsum(gaps)))[:count]


class ArrivalClock:
    """Calls `arrive(index)` on the event loop at `start + times[index]` (seconds of `time.perf_counter`).

    An event loop's own timers round to whole milliseconds, which would be counted as the server's latency; a thread
    that sleeps does not. Use as a context manager; leaving it stops the calls.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: float,
        times: NDArray[np.float64],
        arrive: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._due: list[float] = (start + times).tolist()
        self._arrive = arrive
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arrivals", daemon=True)

    def _run(self) -> None:
        for index, due in enumerate(self._due):
            while (wait := due - time.perf_counter()) > 0:
                if self._stop.wait(wait):
                    return
            if self._stop.is_set():
                return
            self._loop.call_soon_threadsafe(self._arrive, index)

    def __enter__(self) -> ArrivalClock:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
