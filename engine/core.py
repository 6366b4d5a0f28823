"""The engine's loop: take messages, plan the next step while the device runs this one, commit, send.

One thread does all of this; the device step runs on the runner's own thread. With `async_scheduling` one step is in
flight while the next is planned, so the device never waits for Python.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from ..scheduler.kv_publisher import ZmqPublisher
from ..scheduler.messages import (
    Abort,
    Control,
    ControlReply,
    EngineInfo,
    EngineLoad,
    EngineStatus,
    Finish,
    FirstToken,
    Hello,
    Pooled,
    Predicted,
    Rejected,
    StepOutput,
    Submit,
    TokenLogprobs,
)
from ..scheduler.plan import RowLogprobs, StepPlan
from ..scheduler.requests import Request
from ..scheduler.scheduler import QueueFull, RequestTooLong, Scheduler, StepOutcome
from .gpu_meter import gpu_meter
from .grammar.store import GrammarStore
from .link import FrontEndLink
from .load import LoadMeter
from .step_runner import StepHandle, StepRunner

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0
MAX_FAILURES = 8  # more than it takes the scheduler to single out a request that breaks every step


@dataclass(slots=True)
class InFlight:
    """A launched step: its plan, the device's promise and the scheduler time it took to make (seconds)."""

    plan: StepPlan
    handle: StepHandle
    schedule_s: float


class EngineCore:
    """Connects the front ends' messages, the scheduler and the runner."""

    def __init__(
        self,
        *,
        engine_id: int,
        incarnation: int,
        info: EngineInfo,
        link: FrontEndLink,
        scheduler: Scheduler,
        runner: StepRunner,
        publisher: ZmqPublisher | None = None,
        grammars: GrammarStore[tuple[int, int]],
        async_scheduling: bool = True,
        num_stages: int = 1,
        can_retry: bool = True,
    ) -> None:
        """Without `can_retry` the first step that raises is the end: the runner cannot take another one after it."""
        self._engine_id = engine_id
        self._incarnation = incarnation
        self._info = info
        self._link = link
        self._scheduler = scheduler
        self._runner = runner
        self._publisher = publisher
        self._grammars = grammars
        self._depth = max(2, num_stages) if async_scheduling else 1
        self._can_retry = can_retry
        self._meter = LoadMeter()
        self._gpu = gpu_meter(info.device)
        self._requests: dict[tuple[int, int], Request] = {}
        self._held: dict[tuple[int, int], Request] = {}  # waits for its grammar, outside of the scheduler
        self._frontends: dict[int, int] = {}  # front end id -> its incarnation
        self._in_flight: deque[InFlight] = deque()
        self._next_status = 0.0
        self._failures = 0  # steps that raised since the last good one
        self._stopping = False

    def stop(self) -> None:
        """Leave the loop after the step that is running; safe to call from a signal handler."""
        self._stopping = True
        self._link.wake()

    def run(self) -> None:
        """Serve until `stop`. Raises what a device step raised if it cannot be tried again, or once `MAX_FAILURES` in a
        row did."""
        self._send_status()
        while not self._stopping:
            self._take_messages()
            self._admit_held()
            launched = self._launch_next()
            if len(self._in_flight) == self._depth or (self._in_flight and not launched):
                self._finish_oldest()
            elif not self._in_flight:
                self._link.wait(max(0, int((self._next_status - time.monotonic()) * 1000) + 1))
                self._use_idle_time()
            if time.monotonic() >= self._next_status:
                self._send_status()

    def close(self) -> None:
        """Let the running step end; release threads and sockets."""
        self._runner.close()
        self._grammars.close()
        if self._publisher is not None:
            self._publisher.close()

    def _use_idle_time(self) -> None:
        """Nothing runs, and a status is due before anything came: nobody is kept waiting."""
        if time.monotonic() >= self._next_status and "generate" in self._info.tasks:
            self._grammars.prepare()

    def _launch_next(self) -> bool:
        start = time.monotonic()
        plan = self._scheduler.plan(start)
        if plan is None:
            return False
        schedule_s = time.monotonic() - start
        self._in_flight.append(InFlight(plan, self._runner.launch(plan), schedule_s))
        return True

    def _finish_oldest(self) -> None:
        step = self._in_flight.popleft()
        while not step.handle.wait(STATUS_INTERVAL_S):
            self._send_status()  # a long step is not a silent engine
        try:
            result = step.handle.result()
        except Exception as error:
            self._recover(step.plan, error)
            return
        self._failures = 0
        now = time.monotonic()
        outcome = self._scheduler.commit(step.plan, result, now)
        committed = time.monotonic()
        self._meter.step(step.plan.num_tokens, result.device_seconds, step.schedule_s + committed - now)
        self._meter.admitted(len(outcome.first), now)
        self._send_outcome(outcome)

    def _recover(self, plan: StepPlan, error: Exception) -> None:
        """A step raised: void what is in flight, start its requests again, end those that keep breaking steps.

        Memory that does not suffice is no defect of the engine: steps become smaller, and it goes on.
        """
        if not self._can_retry:
            raise error
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:
            log.warning(
                "no memory for step %d (%d rows, %d tokens); its requests start again in smaller steps: %s",
                plan.step, len(plan.slots), plan.num_tokens, str(error).partition("\n")[0],
            )  # fmt: skip
        else:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise error
            log.error("step %d failed; its requests start again", plan.step, exc_info=error)
        while self._in_flight:
            with contextlib.suppress(Exception):
                self._in_flight.popleft().handle.result()
        for request in self._scheduler.fail(plan, out_of_memory=out_of_memory):
            self._requests.pop(request_key(request), None)
            finish = Finish(request.request_id, "error", request.num_preemptions)
            self._link.send(request.frontend_id, StepOutput(finished=[finish]))

    # ------------------------------------------------------------------------------------------------- messages in

    def _take_messages(self) -> None:
        for frontend_id, message in self._link.receive():
            match message:
                case Submit():
                    self._submit(frontend_id, message)
                case Abort():
                    ids = np.frombuffer(message.request_ids, dtype="<u4")
                    self._abort((frontend_id, int(request_id)) for request_id in ids)
                case Hello():
                    self._greet(frontend_id, message.incarnation)
                case Control():
                    self._control(frontend_id, message)

    def _greet(self, frontend_id: int, incarnation: int) -> None:
        if self._frontends.get(frontend_id) != incarnation:
            self._abort([key for key in self._requests if key[0] == frontend_id])
            self._frontends[frontend_id] = incarnation
        self._link.send(frontend_id, self._status())

    def _submit(self, frontend_id: int, message: Submit) -> None:
        key = (frontend_id, message.request_id)
        task = message.pooling.task if message.pooling is not None else "generate"
        if task not in self._info.tasks:
            can = " and ".join(self._info.tasks)
            reason = f"this model cannot {task}, it can {can}"
            self._link.send(frontend_id, Rejected(message.request_id, "invalid", reason))
            return
        request = Request(
            key=key,
            frontend_id=frontend_id,
            request_id=message.request_id,
            tokens=np.frombuffer(message.tokens, dtype="<i4"),
            num_prompt_tokens=message.num_prompt_tokens,
            sampling=message.sampling,
            pooling=message.pooling,
            priority=message.priority,
            cache_salt=message.cache_salt,
            prediction=np.frombuffer(message.prediction, dtype="<i4") if message.prediction else None,
            arrival=time.monotonic(),
        )
        try:
            self._scheduler.vet(request, num_held=len(self._held))
        except QueueFull as error:
            waiting = self._load().num_waiting
            rejected = Rejected(
                message.request_id, "queue_full", str(error), self._meter.retry_after_s(waiting), waiting
            )
            self._link.send(frontend_id, rejected)
        except RequestTooLong as error:
            self._link.send(frontend_id, Rejected(message.request_id, "invalid", str(error)))
        else:
            self._requests[key] = request
            if message.sampling.grammar is not None:
                request.grammar = self._grammars.want(message.sampling.grammar, key)
                if request.grammar is None:
                    self._held[key] = request
                    return
            self._scheduler.enqueue(request)

    def _admit_held(self) -> None:
        """Requests whose grammars have been compiled; where that failed, they are refused."""
        for key, outcome in self._grammars.settled() if self._held else ():
            request = self._held.pop(key)
            if isinstance(outcome, str):
                del self._requests[key]
                self._link.send(request.frontend_id, Rejected(request.request_id, "invalid", outcome))
            else:
                request.grammar = outcome
                self._scheduler.enqueue(request)

    def _abort(self, keys: Iterable[tuple[int, int]]) -> None:
        for key in keys:
            request = self._requests.pop(key, None)
            if request is None:
                continue
            if key in self._held:
                del self._held[key]
                assert request.sampling.grammar is not None
                self._grammars.forgo(request.sampling.grammar, key)
            else:
                self._scheduler.abort(request)

    def _control(self, frontend_id: int, message: Control) -> None:
        match message.op:
            case "flush_cache":
                dropped = self._scheduler.flush_cache()
                self._link.send(
                    frontend_id, ControlReply(message.control_id, True, f"{dropped} pages dropped")
                )

    # ------------------------------------------------------------------------------------------------ messages out

    def _send_outcome(self, outcome: StepOutcome) -> None:
        for request in outcome.finished:
            self._requests.pop(request_key(request), None)
        if self._link.num_frontends == 1:
            self._send_step(
                0,
                outcome,
                outcome.request_ids,
                outcome.counts,
                outcome.tokens,
                outcome.drafted,
                outcome.accepted,
            )
            return
        token_owner = np.repeat(outcome.frontend_ids, outcome.counts)
        for frontend_id in range(self._link.num_frontends):
            rows = outcome.frontend_ids == frontend_id
            tokens = outcome.tokens[token_owner == frontend_id]
            self._send_step(
                frontend_id,
                outcome,
                outcome.request_ids[rows],
                outcome.counts[rows],
                tokens,
                None if outcome.drafted is None else outcome.drafted[rows],
                None if outcome.accepted is None else outcome.accepted[rows],
            )

    def _send_step(
        self,
        frontend_id: int,
        outcome: StepOutcome,
        request_ids: np.ndarray,
        counts: np.ndarray,
        tokens: np.ndarray,
        drafted: np.ndarray | None,
        accepted: np.ndarray | None,
    ) -> None:
        output = StepOutput(
            request_ids=request_ids.astype("<u4", copy=False).tobytes(),
            counts=counts.astype("<u2", copy=False).tobytes(),
            tokens=tokens.astype("<i4", copy=False).tobytes(),
            drafted=b"" if drafted is None else drafted.astype("<u2", copy=False).tobytes(),
            accepted=b"" if accepted is None else accepted.astype("<u2", copy=False).tobytes(),
            first=[
                FirstToken(request.request_id, request.num_cached_tokens, queue_s, prefill_s)
                for request, queue_s, prefill_s in outcome.first
                if request.frontend_id == frontend_id
            ],
            finished=[
                Finish(request.request_id, request.finish_reason or "error", request.num_preemptions)
                for request in outcome.finished
                if request.frontend_id == frontend_id
            ],
            logprobs=[
                pack_logprobs(request.request_id, row)
                for request, row in outcome.logprobs
                if request.frontend_id == frontend_id
            ],
            pooled=[
                Pooled(request.request_id, row.values.astype("<f4", copy=False).tobytes())
                for request, row in outcome.pooled
                if request.frontend_id == frontend_id
            ],
            predicted=[
                Predicted(request.request_id, *request.predicted)
                for request in outcome.predicted
                if request.frontend_id == frontend_id
            ],
        )
        if output.request_ids or output.finished or output.logprobs:
            self._link.send(frontend_id, output)

    def _status(self) -> EngineStatus:
        load = self._load()
        return EngineStatus(
            engine_id=self._engine_id,
            incarnation=self._incarnation,
            state="ready",
            info=self._info,
            load=load if self._gpu is None else self._gpu.fill(load),
        )

    def _load(self) -> EngineLoad:
        """Requests that wait for their grammars are waiting requests."""
        load = self._scheduler.load()
        if self._held:
            tokens = sum(len(request.tokens) for request in self._held.values())
            load = msgspec.structs.replace(
                load,
                num_waiting=load.num_waiting + len(self._held),
                waiting_tokens=load.waiting_tokens + tokens,
                in_flight_tokens=load.in_flight_tokens + tokens,
            )
        return self._meter.fill(load)

    def _send_status(self) -> None:
        self._link.broadcast(self._status())
        self._next_status = time.monotonic() + STATUS_INTERVAL_S


def request_key(request: Request) -> tuple[int, int]:
    return (request.frontend_id, request.request_id)


def pack_logprobs(request_id: int, row: RowLogprobs) -> TokenLogprobs:
    """The wire form of one row's log probabilities."""
    return TokenLogprobs(
        request_id=request_id,
        is_prompt=row.is_prompt,
        token_ids=row.token_ids.astype("<i4", copy=False).tobytes(),
        logprobs=row.logprobs.astype("<f4", copy=False).tobytes(),
        ranks=row.ranks.astype("<i4", copy=False).tobytes(),
        k=row.top_ids.shape[1],
        top_ids=row.top_ids.astype("<i4", copy=False).tobytes(),
        top_logprobs=row.top_logprobs.astype("<f4", copy=False).tobytes(),
    )
