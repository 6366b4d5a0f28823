"""Scheduler and runner joined as the engine's loop joins them, without messages: what a step takes, what a load takes.

One step is in flight while the next is planned (`EngineCore`). Contexts are computed, not pretended: every key that a
decode step reads was written by a prefill.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from ...scheduler.messages import SamplingParams
from ...scheduler.plan import StepPlan
from ...scheduler.requests import Request
from ...scheduler.scheduler import Scheduler
from ..build import Built
from ..step_runner import StepHandle

Figures: TypeAlias = dict[str, Any]
STEPS_IN_FLIGHT = 2
WARM_UP_STEPS = 8
SPARE_STEPS = 16
LEAST_CHUNK = 16  # of a prompt in a step, whatever decodes


class NotEnoughPages(Exception):
    """The KV cache does not hold what is to be measured; the message has both sizes."""


class Loop:
    """Requests of random prompts through a scheduler of their own."""

    def __init__(self, built: Built, seed: int = 0) -> None:
        self.finished = 0
        self._runner = built.runner
        self._scheduler = Scheduler(built.scheduler_config)
        self._in_flight: deque[tuple[StepPlan, StepHandle]] = deque()
        self._rng = np.random.default_rng(seed)
        self._vocab_size = built.info.vocab_size
        self._added = 0

    def add(self, prompt: int, max_tokens: int) -> None:
        """A request of `prompt` random tokens; greedy, and it does not end early."""
        tokens = self._rng.integers(0, self._vocab_size, prompt).astype(np.int32)
        request = Request(
            key=self._added,
            request_id=self._added,
            tokens=tokens,
            num_prompt_tokens=prompt,
            sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
            arrival=time.monotonic(),
        )
        self._scheduler.add(request)
        self._added += 1

    def step(self) -> StepPlan | None:
        """Launch the next step, if there is one, and take in the oldest; its plan, or None if nothing is left."""
        while len(self._in_flight) < STEPS_IN_FLIGHT:
            plan = self._scheduler.plan(time.monotonic())
            if plan is None:
                break
            self._in_flight.append((plan, self._runner.launch(plan)))
        if not self._in_flight:
            return None
        plan, handle = self._in_flight.popleft()
        outcome = self._scheduler.commit(plan, handle.result(), time.monotonic())
        self.finished += len(outcome.finished)
        return plan

    def close(self) -> None:
        """Wait for what is in flight."""
        while self._in_flight:
            plan, handle = self._in_flight.popleft()
            self._scheduler.commit(plan, handle.result(), time.monotonic())


@contextmanager
def decoding(built: Built, batch: int, context: int, steps: int) -> Iterator[Loop]:
    """A loop in which `batch` requests of `context` tokens decode, warm, with `steps` steps to go."""
    room = max(LEAST_CHUNK, built.info.max_num_batched_tokens - batch)
    prefills = -(-batch * context // room)
    output = prefills + WARM_UP_STEPS + steps + SPARE_STEPS
    check_pages(built, batch, context + output)
    loop = Loop(built)
    for _ in range(batch):
        loop.add(context, output)
    warm = 0
    while warm < WARM_UP_STEPS:
        plan = loop.step()
        assert plan is not None, "requests outlast their warm-up"
        warm = warm + 1 if plan.num_decode_rows == len(plan.slots) == batch else 0
    gc.collect()
    gc.disable()
    try:
        yield loop
    finally:
        gc.enable()
        loop.close()


def decode(built: Built, batch: int, context: int, steps: int) -> Figures:
    """Milliseconds from one step's results to the next's; `mean_context` is how many keys a row read."""
    times, contexts = [], []
    with decoding(built, batch, context, steps) as loop:
        before = time.perf_counter()
        for _ in range(steps):
            plan = loop.step()
            assert plan is not None
            assert plan.num_decode_rows == batch
            now = time.perf_counter()
            times.append(1e3 * (now - before))
            contexts.append(float(plan.starts.mean()) + 1)
            before = now
    return {
        "ms": sum(times) / steps,
        "median_ms": statistics.median(times),
        "worst_ms": max(times),
        "mean_context": sum(contexts) / steps,
    }


def prefill(built: Built, prompt: int, repeats: int) -> Figures:
    """Milliseconds from a lone prompt's arrival to its first token; the first one is not counted."""
    check_pages(built, 1, prompt + 1)
    times = []
    for number in range(repeats + 1):
        loop = Loop(built, seed=1 + number)  # another prompt, which no cache holds
        before = time.perf_counter()
        loop.add(prompt, 1)
        while loop.step() is not None:
            pass
        times.append(1e3 * (time.perf_counter() - before))
    return {"ms": statistics.median(times[1:]), "best_ms": min(times[1:])}


def throughput(built: Built, batch: int, requests: int, prompt: int, output: int) -> Figures:
    """Output tokens a second of `requests` requests, `batch` of them at a time."""
    check_pages(built, batch, prompt + output)
    loop = Loop(built, seed=1000)
    before = time.perf_counter()
    for _ in range(min(batch, requests)):
        loop.add(prompt, output)
    added = min(batch, requests)
    while loop.finished < requests:
        plan = loop.step()
        assert plan is not None, "requests that have not ended have steps left"
        while added < requests and added - loop.finished < batch:
            loop.add(prompt, output)
            added += 1
    seconds = time.perf_counter() - before
    loop.close()
    return {"tokens_per_s": requests * output / seconds, "seconds": seconds}


def check_pages(built: Built, batch: int, length: int) -> None:
    info = built.info
    if length > info.max_model_len:
        raise NotEnoughPages(f"needs a context of {length} tokens, max_model_len is {info.max_model_len}")
    if batch > info.max_num_seqs:
        raise NotEnoughPages(f"needs {batch} requests at once, max_num_seqs is {info.max_num_seqs}")
    needed = batch * -(-length // info.page_size)
    if needed > info.num_pages:
        tokens = info.page_size
        raise NotEnoughPages(f"needs {needed * tokens} tokens of KV cache, {info.num_pages * tokens} fit")
