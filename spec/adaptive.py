"""How many tokens to draft for each request of a step: what each one would gain against what verifying it costs.

Gain: per request, and per way in which its drafts come about, the chance that the j-th draft token is accepted once
those before it were. It is learnt from what happened, older events counting less and less; what a request has not shown
itself is taken from the others and from its other positions. The product of the chances up to j is what the j-th token
adds to the output. Cost: the caller's model of how long a step of so many tokens takes.

The lengths maximise expected tokens per second of the step, none at all included (`best_lengths`, with the proof). So
under the model a step is never slower than one without drafts, and where nothing is accepted drafts stop. A draft is
made one token longer than that now and then, to see whether things have changed: after a failure twice as many steps
pass before the request's next try, and all tries together may take `PROBE_SHARE` of the time.

The bound that follows: a step whose drafts are all refused takes at most 1 + b of the time without drafts, b being the
chance that was believed of a draft token (a longer step would not have had the best rate). Every failure takes a fixed
share from what is believed, so the sum of b over all steps is finite, and n steps take (1 + PROBE_SHARE) n and a
constant: spec-on is 0.99 of spec-off in the long run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Seconds: TypeAlias = Callable[[int], float]

DECAY = 0.9  # what a request's older drafts still count, per draft
COMMON_DECAY = 0.99  # what drafts of all requests still count, per draft
FIRST_CHANCE, FIRST_WEIGHT = 0.6, 2.0  # believed before anything was seen, as if so many drafts had shown it
SHARED_WEIGHT = 2.0  # drafts that outweigh what a request shares with others
PROBE_SHARE = 0.01  # of the time, at most
FIRST_PROBE, LAST_PROBE = 8, 128  # steps from a probe of a request that failed to the next one, doubling
ONE = 65535  # a gain of one token; gains are compared as 16-bit integers, which sort quickly
NUM_SUMS = 64  # sums of lengths that are tried, the numbers of tokens evenly apart if there are more
NUM_KNOTS = 16  # sums for which the time is asked for; it is linear between


class DraftLengths:
    """What is known of the drafts of each slot. Arrays have a row for each of n different slots."""

    def __init__(self, num_slots: int, max_len: int, num_sources: int = 1) -> None:
        """Drafts of up to `max_len` tokens that come about in `num_sources` ways."""
        self._max_len, self._num_sources = max_len, num_sources
        self._positions = np.arange(max_len, dtype=np.int32)
        # Decayed sums; row = slot * num_sources + source, a column per position and one for all together.
        self._accepted: Float32 = np.zeros((num_slots * num_sources, max_len + 1), np.float32)
        self._tried: Float32 = np.zeros_like(self._accepted)
        self._common_tried: Float64 = np.full((max_len + 1, num_sources), FIRST_WEIGHT)
        self._common_accepted: Float64 = self._common_tried * FIRST_CHANCE
        self._common: Float32 = np.full(self._common_tried.shape, FIRST_CHANCE, np.float32)
        self._step = 0
        self._savings = 0.0  # seconds that probes may take
        self._saved_steps = 1  # for which they have not grown yet
        self._next_probe: Int64 = np.zeros(num_slots, np.int64)  # step
        self._interval: Int64 = np.full(num_slots, FIRST_PROBE)
        self._probed: Int32 = np.full(
            num_slots, -1, np.int32
        )  # the position that is tried in this step, or -1

    def start(self, slot: int) -> None:
        """Another request is in the slot."""
        rows = slice(slot * self._num_sources, (slot + 1) * self._num_sources)
        self._accepted[rows] = self._tried[rows] = 0.0
        self._interval[slot] = FIRST_PROBE
        self._next_probe[slot] = self._step + FIRST_PROBE
        self._probed[slot] = -1

    def chances(self, slots: Int32, sources: Int32 | None = None) -> Float32:
        """(max_len, n): that the j-th draft token is accepted if those before it are."""
        rows = slots if self._num_sources == 1 else slots * self._num_sources + self._of(slots, sources)
        accepted = np.ascontiguousarray(self._accepted.take(rows, axis=0).T)
        tried = np.ascontiguousarray(self._tried.take(rows, axis=0).T)
        shared = self._common.take(self._of(slots, sources), axis=1)
        tried += np.float32(SHARED_WEIGHT)
        # The last row is of the request at all its positions; then each position, between that and the others' there.
        of_request = (accepted[-1] + np.float32(SHARED_WEIGHT) * shared[-1]) / tried[-1]
        shared = shared[:-1]
        shared += of_request
        shared *= np.float32(SHARED_WEIGHT / 2)
        shared += accepted[:-1]
        shared /= tried[:-1]
        return shared

    def choose(
        self,
        slots: Int32,
        limits: Int32,
        seconds: Seconds,
        *,
        sources: Int32 | None = None,
        other_tokens: int = 0,
        pass_seconds: float = 0.0,
        max_tokens: int | None = None,
        steps: int = 1,
    ) -> Int32:
        """Draft lengths (n,) for one step in which each of slots (n,) produces a token, and more where drafts help.

        `limits` (n,) are the longest drafts that can be, `sources` (n,) how they come about. `seconds(t)` is the time
        of a step of t tokens, `other_tokens` (prefill, other requests) of which are in it anyway; `pass_seconds` is
        what the longest draft costs per token (a model that drafts one token after the other). The lengths sum to at
        most `max_tokens`. It is so many `steps` since this was asked before: there was no room for drafts in the others.
        """
        self._step += steps
        self._saved_steps = steps
        num_tokens = len(slots) + other_tokens
        some = np.flatnonzero(limits)
        if not some.size:
            return np.zeros(len(slots), np.int32)
        if some.size < len(slots):  # often few have a draft
            lens = np.zeros(len(slots), np.int32)
            lens[some] = self._choose(
                slots[some],
                limits[some],
                seconds,
                None if sources is None else sources[some],
                num_tokens,
                pass_seconds,
                max_tokens,
            )
            return lens
        return self._choose(slots, limits, seconds, sources, num_tokens, pass_seconds, max_tokens)

    def _choose(
        self,
        slots: Int32,
        limits: Int32,
        seconds: Seconds,
        sources: Int32 | None,
        num_tokens: int,
        pass_seconds: float,
        max_tokens: int | None,
    ) -> Int32:
        """Of those that can have a draft; `num_tokens` are in the step without drafts."""
        gains = self.chances(slots, sources)
        for j in range(1, self._max_len):
            gains[j] *= gains[j - 1]
        gains *= self._positions[:, None] < limits
        lens, total = best_lengths(
            gains, seconds, num_tokens, pass_seconds=pass_seconds, max_tokens=max_tokens
        )
        number = None if max_tokens is None else max_tokens - total
        self._probe(slots, lens, limits, seconds, num_tokens + total, pass_seconds, number)
        return lens

    def observe(self, slots: Int32, drafted: Int32, accepted: Int32, sources: Int32 | None = None) -> None:
        """Of drafted (n,) tokens the model looked at, it accepted the first accepted (n,); rows with 0 teach nothing."""
        some = np.flatnonzero(drafted)
        if not some.size:
            return
        slots, drafted, accepted = slots[some], drafted[some], accepted[some]
        of = self._of(slots, None if sources is None else sources[some])
        right, tried = np.empty((2, len(slots), self._max_len + 1), np.float32)
        right[:, :-1] = self._positions < accepted[:, None]
        tried[:, :-1] = self._positions < np.minimum(accepted + 1, drafted)[:, None]
        right[:, -1], tried[:, -1] = accepted, np.minimum(accepted + 1, drafted)
        rows = slots * self._num_sources + of
        self._accepted[rows] = self._accepted[rows] * np.float32(DECAY) + right
        self._tried[rows] = self._tried[rows] * np.float32(DECAY) + tried
        member = (of[:, None] == np.arange(self._num_sources)).astype(np.float64)
        times = tried.T @ member
        keep = COMMON_DECAY**times
        self._common_accepted = self._common_accepted * keep + right.T @ member
        self._common_tried = self._common_tried * keep + times
        self._common = (self._common_accepted / self._common_tried).astype(np.float32)
        self._judge(slots, drafted, accepted)

    def _of(self, slots: Int32, sources: Int32 | None) -> Int32:
        return np.zeros(len(slots), np.int32) if sources is None else sources

    def _probe(
        self,
        slots: Int32,
        lens: Int32,
        limits: Int32,
        seconds: Seconds,
        total: int,
        pass_seconds: float,
        room: int | None,
    ) -> None:
        """Make some drafts a token longer than what seems best, within the time that there is for it."""
        self._probed[slots] = -1
        now = seconds(total)
        # Up to what a probe may cost: were it less, a pass that seemed expensive once would never be measured again.
        self._savings = min(self._savings + PROBE_SHARE * now * self._saved_steps, now + pass_seconds)
        # With the first probe some draft may become the longest.
        if seconds(total + 1) - now + pass_seconds > self._savings:
            return
        due = np.flatnonzero((lens < limits) & (self._next_probe.take(slots) <= self._step))
        number = due.size if room is None else min(due.size, room)
        if not number:
            return
        cost = seconds(total + number) - now
        if cost + pass_seconds > self._savings:
            number = max(1, int(number * (self._savings - pass_seconds) / cost))
            cost = seconds(total + number) - now
            if cost + pass_seconds > self._savings:
                number, cost = 1, seconds(total + 1) - now
        self._savings -= max(0.0, cost + pass_seconds)
        chosen = due[np.argsort(self._next_probe[slots[due]], kind="stable")[:number]]
        self._probed[slots[chosen]] = lens[chosen]
        self._next_probe[slots[chosen]] = self._step + self._interval[slots[chosen]]
        lens[chosen] += 1

    def _judge(self, slots: Int32, drafted: Int32, accepted: Int32) -> None:
        """After a probe that failed the next one comes later, after one that did not at once."""
        at = self._probed[slots]
        reached = (at >= 0) & (at < drafted) & (accepted >= at)
        slots, succeeded = slots[reached], (accepted > at)[reached]
        interval = np.where(succeeded, FIRST_PROBE, np.minimum(2 * self._interval[slots], LAST_PROBE))
        self._interval[slots] = interval
        self._next_probe[slots] = self._step + np.where(succeeded, 1, interval)
        self._probed[slots] = -1


def best_lengths(
    gains: Float32,
    seconds: Seconds,
    num_tokens: int,
    *,
    pass_seconds: float = 0.0,
    max_tokens: int | None = None,
) -> tuple[Int32, int]:
    """The draft lengths (n,) that maximise (num_tokens + gained tokens) / (seconds of the step), and their sum.

    gains (K, n) are what each draft token adds to the output, 0 .. 1, falling along a column; 0 where none can be.
    `num_tokens` are in the step without drafts, `seconds(t)` is its time with t tokens, and each token of the longest
    draft costs `pass_seconds`. The lengths sum to at most `max_tokens`.

    The time depends on the lengths only by their sum m (and by the longest, for which every value is tried). For a
    given m the numerator is largest with the m largest gains; since gains fall along each column, these can be taken
    to be the first ones of every column, so they are drafts. What remains is m: the gains in order, their sums over the
    time, the largest quotient. m = 0 is among them, so the result is never worse than no drafts.
    """
    whole = (gains * np.float32(ONE)).astype(np.uint16)
    lens, total = np.zeros(gains.shape[1], np.int32), 0
    best = num_tokens / seconds(num_tokens)
    for depth in range(1, len(gains) + 1) if pass_seconds else (len(gains),):
        ordered = np.sort(whole[:depth], axis=None, kind="stable")[::-1]
        most = int(np.count_nonzero(ordered))
        if max_tokens is not None:
            most = min(most, max_tokens)
        if not most:
            break
        sums, time = step_seconds(seconds, num_tokens, most)
        produced = np.cumsum(ordered, dtype=np.int64).take(sums - 1) * (1 / ONE) + num_tokens
        at = int((produced / (time + depth * pass_seconds)).argmax())
        number = int(sums[at])
        rate = float(produced[at]) / (
            seconds(num_tokens + number) + depth * pass_seconds
        )  # not between knots
        if rate > best:
            best, total = rate, number
            lens = first_of_columns(whole[:depth], number, int(ordered[number - 1]))
    return lens, total


def step_seconds(seconds: Seconds, num_tokens: int, most: int) -> tuple[Int64, Float64]:
    """Sums of lengths from 1 to `most`, and the time of a step with each."""
    if most <= NUM_KNOTS:
        return np.arange(1, most + 1), np.array([seconds(num_tokens + i) for i in range(1, most + 1)])
    knots = [1 + i * (most - 1) // (NUM_KNOTS - 1) for i in range(NUM_KNOTS)]
    times = [seconds(num_tokens + i) for i in knots]
    number = min(most, NUM_SUMS)
    sums = 1 + np.arange(number) * (most - 1) // (number - 1)
    return sums, np.interp(sums, knots, times)


def first_of_columns(gains: npt.NDArray[np.uint16], number: int, smallest: int) -> Int32:
    """(n,) how many of each column of gains (K, n) are among the `number` largest, the last of which is `smallest`."""
    lens: Int32 = (gains >= smallest).sum(0, dtype=np.uint8).astype(np.int32)
    excess = int(lens.sum()) - number
    if excess:
        equal = (gains == smallest).sum(0, dtype=np.int32)
        after = equal[::-1].cumsum()[::-1] - equal
        lens -= np.minimum(np.maximum(excess - after, 0), equal).astype(np.int32)
    return lens
