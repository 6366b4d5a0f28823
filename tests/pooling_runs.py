"""Pooling requests through the real scheduler and runner, without HTTP."""

from __future__ import annotations

from collections import deque

import numpy as np
from penstock.engine.build import Built
from penstock.scheduler.messages import PoolingParams, SamplingParams
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler

EMBED = PoolingParams(task="embed")


def pool(
    built: Built,
    prompts: list[list[int]],
    params: PoolingParams | list[PoolingParams] = EMBED,
    *,
    steps_in_flight: int = 2,
    scheduler: Scheduler | None = None,
) -> list[np.ndarray]:
    """What was asked of each prompt, all waiting at once; `check()` after every commit."""
    scheduler = scheduler or Scheduler(built.scheduler_config)
    each = params if isinstance(params, list) else [params] * len(prompts)
    for i, (prompt, wanted) in enumerate(zip(prompts, each, strict=True)):
        scheduler.add(pooling_request(i, prompt, wanted))
    found: dict[object, np.ndarray] = {}
    in_flight: deque = deque()
    while in_flight or scheduler.has_work():
        plan = scheduler.plan(0.0)
        if plan is not None:
            in_flight.append((plan, built.runner.launch(plan)))
        if len(in_flight) == steps_in_flight or (in_flight and plan is None):
            oldest, handle = in_flight.popleft()
            outcome = scheduler.commit(oldest, handle.result(), 0.0)
            assert {id(request) for request in outcome.finished} >= {id(r) for r, _ in outcome.pooled}
            found |= {request.key: pooled.values for request, pooled in outcome.pooled}
            scheduler.check()
    return [found[i] for i in range(len(prompts))]


def pooling_request(key: object, prompt: list[int], params: PoolingParams = EMBED) -> Request:
    return Request(
        key=key,
        tokens=np.array(prompt, np.int32),
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(max_tokens=0),
        pooling=params,
    )
