"""How long the scheduler takes for one decode step: `python -m tools.bench.scheduler_step`.

256 requests decode with one step in flight; a line per case gives the median and 99th percentile of plan + commit in
microseconds. `evicting` fills the cache first, so that every new page evicts another.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import SamplingParams
from penstock.scheduler.plan import StepPlan, StepResult
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler, SchedulerConfig

RUNNING = 256
STEPS = 400
PAGE_SIZE = 16
PAGES = 20_000
CASES = {
    "one full group": ((KVGroup("full", PAGES),), False),
    "one full group, evicting": ((KVGroup("full", PAGES),), True),
    "full and sliding group": ((KVGroup("full", PAGES), KVGroup("sliding", PAGES, 256)), False),
}


def result_of(plan: StepPlan) -> StepResult:
    return StepResult(plan.sample.astype(np.int32), np.full(int(plan.sample.sum()), 7, np.int32))


def request(rng: np.random.Generator, number: int, length: int, max_tokens: int) -> Request:
    return Request(
        key=number,
        request_id=number,
        tokens=rng.integers(0, 1000, length).astype(np.int32),
        num_prompt_tokens=length,
        sampling=SamplingParams(max_tokens=max_tokens, stop_token_ids=[1, 2]),
    )


def measure(groups: tuple[KVGroup, ...], evicting: bool) -> np.ndarray:
    """(STEPS,) microseconds of plan + commit."""
    rng = np.random.default_rng(0)
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=RUNNING,
            max_num_batched_tokens=4096,
            max_model_len=4096,
            page_size=PAGE_SIZE,
            groups=groups,
        )
    )
    if evicting:
        for number in range(PAGES * PAGE_SIZE // 2048 + 1):
            scheduler.add(request(rng, number, 2048, 1))
        while (plan := scheduler.plan(0.0)) is not None:
            scheduler.commit(plan, result_of(plan), 0.0)
    for number in range(RUNNING):
        scheduler.add(request(rng, number, int(rng.integers(100, 400)), 3000))
    in_flight: deque[tuple[StepPlan, StepResult]] = deque()
    times: list[float] = []
    while len(times) < STEPS:
        begin = time.perf_counter()
        plan = scheduler.plan(0.0)
        spent = time.perf_counter() - begin
        assert plan is not None
        in_flight.append((plan, result_of(plan)))
        if len(in_flight) == 2:
            oldest, result = in_flight.popleft()
            begin = time.perf_counter()
            scheduler.commit(oldest, result, 0.0)
            spent += time.perf_counter() - begin
            if plan.num_decode_rows == RUNNING:
                times.append(spent * 1e6)
    return np.array(times)


def main() -> None:
    for name, (groups, evicting) in CASES.items():
        times = measure(groups, evicting)
        print(f"{name:28} median {np.median(times):6.1f} us   p99 {np.percentile(times, 99):6.1f} us")


if __name__ == "__main__":
    main()
