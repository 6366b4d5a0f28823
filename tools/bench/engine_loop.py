"""What the engine's loop costs beside the forward pass: `python -m tools.bench.engine_loop`.

A real `EngineCore` (scheduler, ZMQ link, grammar store) runs N decoding requests on a device that takes no time; a
process of its own reads what is sent. A line per number of requests gives microseconds per step: wall time of the
loop's thread, and CPU time of the whole process (the thread that sends to sockets included). `inline` answers where
it is asked; `thread` goes through the device's own thread, as a runner does, and so has the price of two hand-overs
between threads in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time

import numpy as np
import zmq
from penstock.engine.core import EngineCore
from penstock.engine.device_thread import DeviceThread, Promise
from penstock.engine.grammar.store import GrammarStore
from penstock.engine.link import FrontEndLink
from penstock.engine.step_runner import StepHandle
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import (
    EngineInfo,
    Hello,
    SamplingParams,
    StepOutput,
    Submit,
    decode_to_frontend,
    encode,
)
from penstock.scheduler.plan import StepPlan, StepResult
from penstock.scheduler.scheduler import Scheduler, SchedulerConfig

PAGE_SIZE = 16
PROMPT = 100
MAX_TOKENS = 4000
WARM_UP_STEPS = 100
TOKEN = 7
PATIENCE_MS = 30_000
PATIENCE_MS = 30_000


def result_of(plan: StepPlan) -> StepResult:
    return StepResult(plan.sample.astype(np.int32), np.full(int(plan.sample.sum()), TOKEN, np.int32))


class InstantRunner:
    """A device that takes no time. The loop ends after `steps` steps of all `running` requests; `times` says when
    the first and the last of them began, in wall and CPU seconds."""

    def __init__(self, num_slots: int, running: int, steps: int) -> None:
        self.num_slots = num_slots
        self.core: EngineCore | None = None
        self.times: list[tuple[float, float]] = []
        self._running = running
        self._left = WARM_UP_STEPS + steps
        self._steps = steps

    def launch(self, plan: StepPlan) -> StepHandle:
        if plan.num_decode_rows == self._running:
            self._left -= 1
            if self._left in (self._steps, 0):
                self.times.append((time.perf_counter(), time.process_time()))
            if self._left == 0 and self.core is not None:
                self.core.stop()
        return self._start(plan)

    def _start(self, plan: StepPlan) -> StepHandle:
        handle: Promise[StepResult] = Promise()
        handle._settle(result_of(plan), None)
        return handle

    def close(self) -> None:
        """Nothing to give back."""


class ThreadedRunner(InstantRunner):
    """The same through the device's thread."""

    def __init__(self, num_slots: int, running: int, steps: int) -> None:
        super().__init__(num_slots, running, steps)
        self._thread = DeviceThread()

    def _start(self, plan: StepPlan) -> StepHandle:
        return self._thread.submit(result_of, plan)

    def close(self) -> None:
        self._thread.close()


RUNNERS = {"inline": InstantRunner, "thread": ThreadedRunner}


def front_end(endpoint: str, running: int) -> None:
    """A front end that submits its requests and reads what comes; it runs until it is killed."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)  # it ends if whoever is measured does
    router.bind(endpoint)
    engine, _ = router.recv_multipart()
    router.send_multipart([engine, encode(Hello(0, 1))])
    prompts = np.random.default_rng(0).integers(0, 1000, (running, PROMPT)).astype("<i4")
    for number, prompt in enumerate(prompts):
        sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, stop_token_ids=[1, 2])
        submit = Submit(
            request_id=number, tokens=prompt.tobytes(), num_prompt_tokens=PROMPT, sampling=sampling
        )
        router.send_multipart([engine, encode(submit)])
    while True:
        message = decode_to_frontend(router.recv_multipart()[1])
        assert not isinstance(message, StepOutput) or len(message.request_ids) <= 4 * running


def measure(kind: str, running: int, steps: int) -> str:
    config = SchedulerConfig(
        max_num_seqs=running,
        max_num_batched_tokens=8192,
        max_model_len=PROMPT + MAX_TOKENS,
        page_size=PAGE_SIZE,
        groups=(KVGroup("full", running * (PROMPT + MAX_TOKENS + PAGE_SIZE) // PAGE_SIZE),),
    )
    scheduler = Scheduler(config)
    runner = RUNNERS[kind](scheduler.num_slots, running, steps)
    with tempfile.TemporaryDirectory(prefix="penstock-bench") as folder:
        endpoint = f"ipc://{folder}/front-end"
        consumer = multiprocessing.get_context("fork").Process(target=front_end, args=(endpoint, running))
        consumer.start()
        link = FrontEndLink([endpoint], "engine:0:1")
        grammars: GrammarStore[tuple[int, int]] = GrammarStore(
            lambda: None,  # type: ignore[arg-type, return-value]
            capacity_bytes=0,
            wake=link.wake,
        )
        core = EngineCore(
            engine_id=0,
            incarnation=1,
            info=engine_info(config),
            link=link,
            scheduler=scheduler,
            runner=runner,
            grammars=grammars,
        )
        runner.core = core
        try:
            core.run()
        finally:
            core.close()
            consumer.kill()
            consumer.join()
            link.close()
    (wall_before, cpu_before), (wall, cpu) = runner.times
    return (
        f"{kind:6} x{running:<4} {1e6 * (wall - wall_before) / steps:7.1f} us per step   "
        f"{1e6 * (cpu - cpu_before) / steps:7.1f} us of CPU per step"
    )


def engine_info(config: SchedulerConfig) -> EngineInfo:
    return EngineInfo(
        max_model_len=config.max_model_len,
        vocab_size=1000,
        page_size=config.page_size,
        num_pages=config.groups[0].num_pages,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_queued_reqs=1024,
        dtype="float32",
        kv_cache_dtype="float32",
        device="cpu",
        attention_backend="none",
        weight_bytes=0,
        kv_cache_bytes=0,
        startup_seconds={},
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--steps", type=int, default=2000, help=f"at most {MAX_TOKENS - 2 * WARM_UP_STEPS}")
    options = parser.parse_args()
    for kind in RUNNERS:
        for running in options.running:
            print(measure(kind, running, options.steps))


if __name__ == "__main__":
    main()
