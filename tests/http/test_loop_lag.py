"""The event loop's lag is what somebody waited for it, and measuring it wakes nobody often while nothing runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from http_family import family, wait_until
from penstock.server.metrics.catalogue import HISTOGRAMS, Metrics
from penstock.server.metrics.loop_lag import BUSY_INTERVAL_S, IDLE_INTERVAL_S, LoopLag

NAME = "penstock:event_loop_lag_seconds"


class Loop:
    """An event loop with its timers in the test's hands."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.call: Callable[[], None] = lambda: None

    def call_later(self, delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.delays.append(delay)
        self.call = call
        return asyncio.TimerHandle(0, call, (), asyncio.new_event_loop())


def observed(metrics: Metrics) -> tuple[list[float], float]:
    """(observations per bucket, their sum)."""
    buckets = next(histogram.buckets for histogram in HISTOGRAMS if histogram.name == NAME)
    base = metrics.positions[NAME, ""]
    values = list(metrics.cells.values[base : base + len(buckets) + 2])
    return values[:-1], values[-1]


def test_the_lag_is_the_time_between_due_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    running = False
    loop, metrics = Loop(), Metrics()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lag = LoopLag(metrics, lambda: running)
    lag.open()
    assert loop.delays == [IDLE_INTERVAL_S]
    now += IDLE_INTERVAL_S + 0.25
    running = True
    loop.call()
    now += BUSY_INTERVAL_S - 0.001  # a timer of milliseconds may come a little early
    loop.call()
    running = False
    now += BUSY_INTERVAL_S
    loop.call()
    assert loop.delays == [IDLE_INTERVAL_S, BUSY_INTERVAL_S, BUSY_INTERVAL_S, IDLE_INTERVAL_S]
    counts, total = observed(metrics)
    assert sum(counts) == 3
    assert total == pytest.approx(0.25)
    lag.close()


def test_a_loop_that_was_blocked_shows_in_the_metrics() -> None:
    with family() as served:
        wait_until(lambda: served.metric(NAME + "_count") > 0, "a first measurement")
        served.loop.call_soon_threadsafe(block, 1.5 * IDLE_INTERVAL_S)
        wait_until(lambda: served.metric(NAME + "_sum") > 0.3 * IDLE_INTERVAL_S, "what it saw")


def block(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
