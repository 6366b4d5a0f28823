"""Arrival schedules have the distribution they are asked for, and the clock keeps them in order and on time."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest
from penstock.server.bench.arrivals import ArrivalClock, arrival_times

COUNT = 20_000


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_asked_for(burstiness: float) -> None:
    times = arrival_times(COUNT, 50.0, burstiness, seed=3)
    assert times is not None
    gaps = np.diff(times)
    assert times[0] == 0
    assert (gaps >= 0).all()
    # A gamma distribution's coefficient of variation is 1/sqrt(shape); bounds are five standard errors.
    variation = 1 / math.sqrt(burstiness)
    assert gaps.mean() * 50 == pytest.approx(1, abs=5 * variation / math.sqrt(COUNT))
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.1)


def test_poisson_counts_per_window_have_variance_equal_to_their_mean() -> None:
    times = arrival_times(COUNT, 10.0, 1.0, seed=5)
    assert times is not None
    counts = np.histogram(times, bins=np.arange(0, times[-1], 1.0))[0]
    assert counts.mean() == pytest.approx(10, rel=0.05)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)


def test_poisson_gaps_are_exponential() -> None:
    times = arrival_times(COUNT, 10.0, 1.0, seed=7)
    assert times is not None
    gaps = np.sort(np.diff(times))
    empirical = np.arange(1, len(gaps) + 1) / len(gaps)
    distance = np.abs(empirical - (1 - np.exp(-10.0 * gaps))).max()
    assert distance < 1.95 / math.sqrt(COUNT)  # Kolmogorov-Smirnov, 0.1 %


def test_the_same_seed_gives_the_same_schedule() -> None:
    first, same, other = (arrival_times(100, 5.0, 1.0, seed) for seed in (1, 1, 2))
    assert first is not None
    assert other is not None
    assert (first == same).all()
    assert not np.array_equal(first, other)


def test_an_infinite_rate_has_no_schedule() -> None:
    assert arrival_times(10, math.inf, 1.0, 0) is None


def test_the_clock_calls_in_order_and_never_early() -> None:
    times = np.array([0.0, 0.004, 0.004, 0.011, 0.02])

    async def run() -> list[tuple[int, float]]:
        seen: list[tuple[int, float]] = []
        over = asyncio.Event()
        start = time.perf_counter()

        def arrive(index: int) -> None:
            seen.append((index, time.perf_counter() - start))
            if len(seen) == len(times):
                over.set()

        with ArrivalClock(asyncio.get_running_loop(), start, times, arrive):
            await over.wait()
        return seen

    seen = asyncio.run(run())
    assert [index for index, _ in seen] == list(range(len(times)))
    assert all(at >= due for (_, at), due in zip(seen, times, strict=True))


def test_leaving_the_clock_stops_it() -> None:
    async def run() -> None:
        with ArrivalClock(
            asyncio.get_running_loop(), time.perf_counter(), np.array([3600.0]), lambda _: None
        ):
            pass

    asyncio.run(run())  # returns at once, not in an hour
