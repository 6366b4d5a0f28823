"""An engine whose device runs out of memory goes on in smaller steps; other failures still end it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from engine_link import Link
from fake_device import FakeDevice, run_alone
from penstock.engine.core import MAX_FAILURES, EngineCore
from penstock.engine.device_thread import DeviceThread
from penstock.engine.grammar.store import Grammar, GrammarStore
from penstock.engine.step_runner import StepHandle
from penstock.scheduler.messages import EngineInfo, GrammarSpec, SamplingParams, StepOutput, Submit
from penstock.scheduler.plan import StepPlan, StepResult
from penstock.scheduler.scheduler import Scheduler
from simulation import make_config

CONFIG = make_config()
INFO = EngineInfo(
    max_model_len=CONFIG.max_model_len,
    vocab_size=97,
    page_size=CONFIG.page_size,
    num_pages=256,
    max_num_seqs=CONFIG.max_num_seqs,
    max_num_batched_tokens=CONFIG.max_num_batched_tokens,
    max_num_queued_reqs=100,
    dtype="float32",
    kv_cache_dtype="float32",
    device="cpu",
    attention_backend="fake",
    weight_bytes=0,
    kv_cache_bytes=0,
    startup_seconds={},
)


def no_grammar(spec: GrammarSpec) -> Grammar:
    raise AssertionError(f"nobody asked for {spec}")


class SmallRunner:
    """A fake device that raises `error` for plans that do not fit."""

    def __init__(self, scheduler: Scheduler, fits: Callable[[StepPlan], bool], error: Exception) -> None:
        self.num_slots = scheduler.num_slots
        self.refused = 0
        self._device = FakeDevice.of(scheduler)
        self._thread = DeviceThread()
        self._fits = fits
        self._error = error

    def launch(self, plan: StepPlan) -> StepHandle:
        return self._thread.submit(self._run, plan)

    def close(self) -> None:
        self._thread.close()

    def _run(self, plan: StepPlan) -> StepResult:
        if not self._fits(plan):
            self.refused += 1
            raise self._error
        return self._device.run(plan)


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Link, SmallRunner, threading.Thread]]]:
    running: list[tuple[EngineCore, threading.Thread]] = []

    def run(fits: Callable[[StepPlan], bool], error: Exception) -> tuple[Link, SmallRunner, threading.Thread]:
        link, scheduler = Link(), Scheduler(CONFIG)
        runner = SmallRunner(scheduler, fits, error)
        engine = EngineCore(
            engine_id=0,
            incarnation=1,
            info=INFO,
            link=link,  # type: ignore[arg-type]
            scheduler=scheduler,
            runner=runner,
            grammars=GrammarStore(lambda: no_grammar, capacity_bytes=1, wake=link.wake),
        )

        def serve() -> None:
            try:
                engine.run()
            except RuntimeError as raised:
                link.heard.put(raised)

        thread = threading.Thread(target=serve)
        thread.start()
        running.append((engine, thread))
        return link, runner, thread

    yield run
    for engine, thread in running:
        engine.stop()
        thread.join()
        engine.close()


def submit(request_id: int, length: int) -> Submit:
    tokens = np.arange(request_id, request_id + length, dtype="<i4")
    return Submit(
        request_id=request_id,
        tokens=tokens.tobytes(),
        num_prompt_tokens=length,
        sampling=SamplingParams(max_tokens=9),
    )


def test_streams_survive_a_device_without_memory_for_large_steps(
    start: Callable[..., tuple[Link, SmallRunner, threading.Thread]],
) -> None:
    link, runner, _ = start(
        lambda plan: plan.num_tokens <= 17 and len(plan.slots) <= 1,
        torch.OutOfMemoryError("CUDA out of memory"),
    )
    count = 6
    for request_id in range(count):
        link.say(submit(request_id, 60))
    outputs = link.tokens_until_finished(count)
    assert runner.refused > 3
    for request_id in range(count):
        prompt = list(range(request_id, request_id + 60))
        sampling = SamplingParams(max_tokens=9)
        expected, _ = run_alone(prompt, 60, sampling, CONFIG.max_model_len, CONFIG.groups)
        assert outputs[request_id] == expected


def test_no_number_of_steps_without_memory_kills_the_engine(
    start: Callable[..., tuple[Link, SmallRunner, threading.Thread]],
) -> None:
    """Not even one token of these prompts finds memory: each request ends with an error, and others are served."""
    link, runner, thread = start(
        lambda plan: (plan.starts + plan.lens).max() <= 8, torch.OutOfMemoryError("CUDA out of memory")
    )
    for request_id in range(8):
        link.say(submit(request_id, 30))
        output = link.next()
        assert isinstance(output, StepOutput)
        assert [(finish.request_id, finish.reason) for finish in output.finished] == [(request_id, "error")]
    assert runner.refused > MAX_FAILURES
    link.say(
        Submit(
            request_id=99,
            tokens=np.arange(4, dtype="<i4").tobytes(),
            num_prompt_tokens=4,
            sampling=SamplingParams(max_tokens=2),
        )
    )
    assert len(link.tokens_until_finished(1)[99]) == 2
    assert thread.is_alive()


def test_other_failures_in_a_row_still_end_the_engine(
    start: Callable[..., tuple[Link, SmallRunner, threading.Thread]],
) -> None:
    link, _, thread = start(lambda plan: False, RuntimeError("a broken device"))
    heard: list[object] = []
    while not heard or isinstance(heard[-1], StepOutput):
        link.say(submit(len(heard), 5))
        heard.append(link.next())
    assert isinstance(heard[-1], RuntimeError)
    thread.join()
