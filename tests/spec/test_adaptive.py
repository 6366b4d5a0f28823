"""Draft lengths: the best under their model, learnt from what happened, and next to nothing where nothing is accepted."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.spec.adaptive import ONE, PROBE_SHARE, DraftLengths, best_lengths

Seconds = Callable[[int], float]


def ints(values: object) -> np.ndarray:
    return np.array(values, np.int32)


def affine(fixed: float, each: float) -> Seconds:
    return lambda tokens: fixed + each * tokens


def padded(size: int) -> Seconds:
    """As recordings for a few sizes cost: the next multiple of `size`."""
    return lambda tokens: 1.0 + -(-tokens // size) * 0.2


def bound_by_two(fixed: float, each: float) -> Seconds:
    """Reading the weights, until computing takes longer."""
    return lambda tokens: max(fixed, each * tokens)


costs = st.one_of(
    st.builds(affine, st.floats(0.01, 10), st.floats(0, 1)),
    st.builds(padded, st.integers(1, 5)),
    st.builds(bound_by_two, st.floats(1, 10), st.floats(0.01, 2)),
)


def best_by_trying_all(
    gains: np.ndarray, seconds: Seconds, num_tokens: int, pass_seconds: float, max_tokens: int
) -> float:
    width, rows = gains.shape
    rates = []
    for lens in itertools.product(range(width + 1), repeat=rows):
        if sum(lens) <= max_tokens:
            gained = sum(gains[:length, row].sum() for row, length in enumerate(lens))
            rates.append((num_tokens + gained) / (seconds(num_tokens + sum(lens)) + pass_seconds * max(lens)))
    return max(rates)


@settings(max_examples=300, deadline=None)
@given(
    chances=st.integers(1, 3).flatmap(
        lambda rows: st.lists(st.lists(st.floats(0, 1), min_size=rows, max_size=rows), min_size=1, max_size=4)
    ),
    seconds=costs,
    other_tokens=st.integers(0, 20),
    pass_seconds=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    max_tokens=st.none() | st.integers(0, 12),
)
def test_no_other_lengths_have_a_better_rate(
    chances: list[list[float]],
    seconds: Seconds,
    other_tokens: int,
    pass_seconds: float,
    max_tokens: int | None,
) -> None:
    """Whole gains of 1 / ONE: rounding them is not what is tested."""
    gains = np.cumprod(np.array(chances), axis=0)
    gains = (np.floor(gains * ONE) / ONE).astype(np.float32)
    num_tokens = gains.shape[1] + other_tokens
    lens, total = best_lengths(gains, seconds, num_tokens, pass_seconds=pass_seconds, max_tokens=max_tokens)
    assert total == lens.sum()
    assert max_tokens is None or total <= max_tokens
    gained = sum(float(gains[:length, row].sum()) for row, length in enumerate(lens))
    longest = int(lens.max(initial=0))
    rate = (num_tokens + gained) / (seconds(num_tokens + total) + pass_seconds * longest)
    most = 100 if max_tokens is None else max_tokens
    assert rate >= best_by_trying_all(gains, seconds, num_tokens, pass_seconds, most) * (1 - 1e-4)
    assert rate >= num_tokens / seconds(num_tokens) * (1 - 1e-9)


@pytest.mark.parametrize("seconds", [affine(1, 0.01), padded(64), bound_by_two(2, 0.01)])
def test_a_large_batch_is_close_to_the_best_sum_and_never_worse_than_no_drafts(seconds: Seconds) -> None:
    """Not every sum of many is tried."""
    random = np.random.default_rng(0)
    gains = np.cumprod(random.random((8, 256)), axis=0).astype(np.float32)
    lens, total = best_lengths(gains, seconds, 256)
    ordered = np.sort(gains, axis=None)[::-1]
    rates = [(256 + ordered[:m].sum()) / seconds(256 + m) for m in range(2049)]
    mine = (256 + sum(gains[:length, row].sum() for row, length in enumerate(lens))) / seconds(256 + total)
    assert mine >= 0.95 * max(rates)
    assert mine >= rates[0]


class Requests:
    """Requests whose j-th draft token is accepted with a given chance, in steps that take as long as a model says."""

    def __init__(self, num: int, seconds: Seconds, chance: float, *, max_len: int = 8, seed: int = 0) -> None:
        self.lengths = DraftLengths(num, max_len, num_sources=2)
        self.slots = np.arange(num, dtype=np.int32)
        self.seconds, self.chance, self.max_len = seconds, chance, max_len
        self.random = np.random.default_rng(seed)
        self.sources = ints(self.slots % 2)
        self.limits = np.full(num, max_len, np.int32)
        for slot in self.slots.tolist():
            self.lengths.start(slot)

    def step(self) -> tuple[int, float, int]:
        """(tokens produced, seconds, draft tokens)."""
        lens = self.lengths.choose(self.slots, self.limits, self.seconds, sources=self.sources)
        right = self.random.random((len(self.slots), self.max_len)) < self.chance
        accepted = np.minimum(np.cumprod(right, axis=1).sum(1), lens).astype(np.int32)
        self.lengths.observe(self.slots, lens, accepted, self.sources)
        drafted = int(lens.sum())
        num = len(self.slots)
        return num + int(accepted.sum()), self.seconds(num + drafted), drafted

    def run(self, steps: int) -> tuple[float, float]:
        """(rate relative to no drafts, draft tokens per request and step)."""
        produced, seconds, drafted = map(sum, zip(*(self.step() for _ in range(steps)), strict=True))
        num = len(self.slots)
        return produced / seconds * self.seconds(num) / num, drafted / steps / num


COSTS = {
    "gpu": affine(1.0, 0.005),
    "cpu": affine(1.0, 0.6),
    "computing": affine(0.0, 1.0),
    "padded": padded(8),
}


@pytest.mark.parametrize("num", [1, 8, 32])
@pytest.mark.parametrize("cost", COSTS)
def test_drafts_that_are_never_accepted_cost_next_to_nothing(cost: str, num: int) -> None:
    requests = Requests(num, COSTS[cost], chance=0.0)
    assert requests.run(1000)[0] >= 0.97, "learning included"
    rate, drafted = requests.run(1000)
    assert rate >= 1 - PROBE_SHARE - 0.002
    assert drafted < 0.1


@pytest.mark.parametrize("cost", COSTS)
def test_new_requests_learn_from_those_before_them(cost: str) -> None:
    """Short answers, none of which would live long enough to learn that nothing is accepted."""
    requests = Requests(8, COSTS[cost], chance=0.0)
    requests.run(300)
    rates = []
    for _ in range(20):
        for slot in requests.slots.tolist():
            requests.lengths.start(slot)
        rates.append(requests.run(20)[0])
    assert np.mean(rates) >= 0.97


@pytest.mark.parametrize(("cost", "steps"), [("gpu", 150), ("padded", 300), ("cpu", 600)])
def test_drafts_come_back_when_they_are_accepted_again(cost: str, steps: int) -> None:
    """The later, the more a try costs."""
    requests = Requests(1, COSTS[cost], chance=0.0)
    requests.run(1000)
    requests.chance = 1.0
    requests.run(steps)
    rate, drafted = requests.run(100)
    assert drafted > 6
    assert rate > 1.5


@pytest.mark.parametrize("pass_seconds", [0.02, 6.0])
@pytest.mark.parametrize("pause", [1, 16])
def test_a_model_that_was_refused_is_tried_again_for_a_hundredth_of_the_time(
    pass_seconds: float, pause: int
) -> None:
    """However seldom steps have room for drafts, and even if a draft takes longer than a step."""
    lengths, slots, number = DraftLengths(1, 4), ints([0]), 20_000
    lengths.start(0)
    tries = 0
    for _ in range(number // pause):
        lens = lengths.choose(slots, ints([4]), affine(1.0, 0.01), pass_seconds=pass_seconds, steps=pause)
        lengths.observe(slots, lens, ints([0]))
        tries += int(lens.any())
    cost = pass_seconds + 0.01
    seldom = min(
        PROBE_SHARE * number / cost, number / 128
    )  # what there is time for, and a request's longest interval
    assert 0.3 * seldom < tries < 1.2 * seldom + 10


@pytest.mark.parametrize(("chance", "least", "most"), [(0.95, 6, 8), (0.5, 0.5, 4), (0.2, 0, 1)])
def test_draft_length_follows_what_is_accepted(chance: float, least: float, most: float) -> None:
    requests = Requests(8, affine(1.0, 0.02), chance)
    requests.run(200)
    rate, drafted = requests.run(500)
    assert least <= drafted <= most
    assert rate >= 0.99


def test_a_way_of_drafting_that_works_is_used_though_another_does_not() -> None:
    lengths = DraftLengths(2, 4, num_sources=2)
    slots, limits, sources = ints([0, 1]), ints([4, 4]), ints([0, 1])
    for _ in range(100):
        lengths.observe(slots, ints([4, 4]), ints([4, 0]), sources)
    for slot in (0, 1):
        lengths.start(slot)
    assert lengths.choose(slots, limits, affine(1, 0.1), sources=sources).tolist() == [4, 0]
    assert lengths.choose(slots, limits, affine(1, 0.1), sources=sources[::-1].copy()).tolist() == [0, 4]


def test_limits_are_kept_by_probes_too() -> None:
    requests = Requests(8, COSTS["gpu"], chance=0.3)
    random = np.random.default_rng(0)
    for _ in range(200):
        limits = ints(random.integers(0, 3, 8))
        most = int(random.integers(0, 6))
        lens = requests.lengths.choose(requests.slots, limits, requests.seconds, max_tokens=most)
        assert (lens <= limits).all()
        assert (lens >= 0).all()
        assert lens.sum() <= most
        requests.lengths.observe(requests.slots, lens, ints(np.zeros(8)))


def test_a_step_full_of_prefill_has_no_room_for_drafts_that_mostly_fail() -> None:
    lengths = DraftLengths(4, 4)
    slots, limits = ints(range(4)), ints([4] * 4)
    seconds = bound_by_two(2.0, 0.01)
    for _ in range(100):
        lengths.observe(slots, limits, ints([1, 1, 0, 1]))
    for slot in range(4):
        lengths.start(slot)  # no probe is due
    assert lengths.choose(slots, limits, seconds).sum() > 0
    assert lengths.choose(slots, limits, seconds, other_tokens=2000).sum() == 0


def test_a_step_without_requests_has_no_drafts() -> None:
    assert DraftLengths(4, 4).choose(ints([]), ints([]), affine(1, 1), other_tokens=5).tolist() == []
