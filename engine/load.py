"""How loaded the engine is: rates that nobody else measures, and the `Retry-After` that follows from them."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

from ..scheduler.messages import ITERATION_TOKENS_BUCKETS, EngineLoad

# A refused client is sent away for the time in which half of the queue is expected to be admitted: coming back
# earlier would mostly be refused again, later would leave the queue empty.
RETRY_SHARE_OF_QUEUE = 0.5
MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0
ADMISSION_HALF_LIFE_S = 10.0


class LoadMeter:
    """Counters of the engine loop, and a decaying rate of admissions (requests per second)."""

    def __init__(self) -> None:
        self._steps = 0
        self._step_seconds = 0.0
        self._schedule_seconds = 0.0
        self._iteration_tokens = [0] * (len(ITERATION_TOKENS_BUCKETS) + 1)
        self._iteration_tokens_sum = 0
        self._admissions = 0.0  # decayed count
        self._observed_s = 0.0  # decayed time over which it was taken
        self._last = 0.0

    def step(self, num_tokens: int, device_s: float, schedule_s: float) -> None:
        """Take in one finished step: its tokens, the device's time and the scheduler's."""
        self._steps += 1
        self._step_seconds += device_s
        self._schedule_seconds += schedule_s
        self._iteration_tokens[bisect_left(ITERATION_TOKENS_BUCKETS, num_tokens)] += 1
        self._iteration_tokens_sum += num_tokens

    def admitted(self, count: int, now: float) -> None:
        """`count` requests produced their first token since the last call."""
        if self._last:
            gap = now - self._last
            keep = 0.5 ** (gap / ADMISSION_HALF_LIFE_S)
            self._admissions *= keep
            self._observed_s = self._observed_s * keep + gap
        self._last = now
        self._admissions += count

    def retry_after_s(self, num_waiting: int) -> float:
        """Seconds until about half of a queue of `num_waiting` requests will have been admitted."""
        if self._observed_s < 0.05 or self._admissions < 0.5:
            return MIN_RETRY_S
        rate = self._admissions / self._observed_s
        return min(MAX_RETRY_S, max(MIN_RETRY_S, RETRY_SHARE_OF_QUEUE * num_waiting / rate))

    def fill(self, load: EngineLoad) -> EngineLoad:
        """The scheduler's gauges and counters with the loop's own added."""
        return msgspec.structs.replace(
            load,
            num_steps=self._steps,
            step_seconds=self._step_seconds,
            schedule_seconds=self._schedule_seconds,
            iteration_tokens=list(self._iteration_tokens),
            iteration_tokens_sum=self._iteration_tokens_sum,
        )
