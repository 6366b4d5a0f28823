"""The model's own outputs for prompts, through the engine's scheduler and runner."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ...scheduler.arrays import Int32
from ...scheduler.messages import EngineConfig, SamplingParams
from ...scheduler.plan import StepPlan
from ...scheduler.requests import Request
from ...scheduler.scheduler import Scheduler
from ..build import Built, create_runner
from ..step_runner import StepHandle
from .token_sets import TokenSet, is_there, read_set, write_set

CHUNK = 2048  # prompts between files: what a killed run does again
STEPS_IN_FLIGHT = 2

Say = Callable[[str], None]
Stopping = Callable[[], bool]


class Stopped(Exception):
    """The run was told to stop; what it had done is kept."""


def outputs(
    built: Built, prompts: Sequence[Int32], sampling: Sequence[SamplingParams], stopping: Stopping
) -> list[Int32]:
    """Prompt and output of each. Raises Stopped once `stopping` says so."""
    scheduler = Scheduler(built.scheduler_config)
    requests = [
        Request(key=i, request_id=i, tokens=prompt, num_prompt_tokens=len(prompt), sampling=how, arrival=i)
        for i, (prompt, how) in enumerate(zip(prompts, sampling, strict=True))
    ]
    waiting, left = deque(requests), len(requests)
    in_flight: deque[tuple[StepPlan, StepHandle]] = deque()
    while left and not stopping():
        while waiting and left - len(waiting) < built.info.max_num_seqs:
            scheduler.add(waiting.popleft())
        while len(in_flight) < STEPS_IN_FLIGHT:
            plan = scheduler.plan(time.monotonic())
            if plan is None:
                break
            in_flight.append((plan, built.runner.launch(plan)))
        plan, handle = in_flight.popleft()
        left -= len(scheduler.commit(plan, handle.result(), time.monotonic()).finished)
    while in_flight:
        plan, handle = in_flight.popleft()
        scheduler.commit(plan, handle.result(), time.monotonic())
    if left:
        raise Stopped
    return [request.tokens for request in requests]


def answered(
    folder: Path,
    name: str,
    config: EngineConfig,
    how: Callable[[int], SamplingParams],
    max_length: int,
    say: Say,
    stopping: Stopping,
) -> TokenSet:
    """The set `name` of prompts with the model's outputs, of which all tokens are wanted; kept as it comes.

    Prompts that leave no room within `max_length` tokens are left out.
    """
    prompts = read_set(folder, name)
    fitting = [i for i in range(len(prompts)) if 0 < len(prompts.text(i)) <= max_length - 4]
    found, built = TokenSet.of([], []), None
    try:
        for begin in range(0, len(fitting), CHUNK):
            part = f"{name}.answered.{begin}"
            if not is_there(folder, part):
                if built is None:
                    built = create_runner(config)
                some, since = fitting[begin : begin + CHUNK], time.monotonic()
                sampling = [within(how(i), max_length - len(prompts.text(i))) for i in some]
                texts = outputs(built, [prompts.text(i) for i in some], sampling, stopping)
                wanted = [np.ones(len(text), np.uint8) for text in texts]
                for index, each in zip(some, wanted, strict=True):
                    each[: len(prompts.text(index))] = 0
                write_set(folder, part, TokenSet.of(texts, wanted))
                made = sum(int(each.sum()) for each in wanted)
                rate = made / (time.monotonic() - since)
                say(f"answered {begin + len(some)} of {len(fitting)} prompts of {name}, {rate:.0f} tokens/s")
            found = found.and_also(read_set(folder, part))
    finally:
        if built is not None:
            built.runner.close()
    return found


def within(sampling: SamplingParams, room: int) -> SamplingParams:
    return msgspec.structs.replace(sampling, max_tokens=min(sampling.max_tokens, room))
