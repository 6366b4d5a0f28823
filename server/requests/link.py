"""Sequences to engines, outputs to sequences, and what survives an engine's death.

A sequence is either assigned to a living engine or parked until there is one. Engines may come, die and return;
a sequence leaves only by its end, its failure or its client.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from array import array
from collections.abc import Callable, Iterable

import msgspec

from ...scheduler.messages import (
    Abort,
    Control,
    ControlReply,
    EngineInfo,
    EngineStatus,
    FamilyStatus,
    Finish,
    FirstToken,
    Hello,
    Rejected,
    Serving,
    StepOutput,
    ToEngine,
    ToFrontEnd,
    TokenLogprobs,
    ToSupervisor,
    decode_to_frontend,
    encode,
)
from ..metrics.catalogue import Metrics
from .engines import Condition, Engine, condition
from .outstanding import Outstanding
from .pooled import PooledPrompt
from .router import Router
from .sequence import Failure, Sequence

log = logging.getLogger(__name__)

ENGINE = b"engine"
SUPERVISOR = b"supervisor"
CONTROL_TIMEOUT_S = 10.0
SERVING_RETRY_S = 0.05
NO_FINISH: dict[int, Finish] = {}
NO_LOGPROBS: dict[int, TokenLogprobs] = {}


class EngineLink:
    """Talks with engines and the supervisor, in the event loop's own thread."""

    def __init__(self, *, router: Router, frontend_id: int, incarnation: int, metrics: Metrics) -> None:
        self._router = router
        router.listen(ENGINE, self._receive)
        router.listen(SUPERVISOR, self._receive)
        router.after_messages(self._flush_aborts)
        self._frontend_id = frontend_id
        self._incarnation = incarnation
        self._metrics = metrics
        self._engines: dict[int, Engine] = {}
        self._by_identity: dict[bytes, Engine] = {}
        self._parked: dict[int, Outstanding] = {}
        self._retries: set[asyncio.TimerHandle] = set()
        self._aborts: dict[bytes, array[int]] = {}
        self._controls: dict[int, asyncio.Future[ControlReply]] = {}
        # Ids continue from a random place: what an engine still sends to a dead predecessor must not meet them.
        self._next_id = random.SystemRandom().getrandbits(32)
        self._serving: Serving | None = None
        self._was_ready = False
        self.draining = False
        self.on_status: Callable[[EngineStatus], None] | None = None

    # ------------------------------------------------------------------------------------------------- open, close

    def open(self) -> None:
        """From now on, on the running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        for handle in self._retries:
            handle.cancel()
        self._flush_aborts()

    # -------------------------------------------------------------------------------------------------- state

    @property
    def condition(self) -> Condition:
        if self.draining:
            return Condition("draining", "the server is shutting down")
        return condition(self.engines, was_ready=self._was_ready)

    @property
    def info(self) -> EngineInfo | None:
        """What the served model's engine is; None before the first one was ready."""
        return next((engine.info for engine in self._engines.values() if engine.info), None)

    @property
    def engines(self) -> list[Engine]:
        return [self._engines[engine_id] for engine_id in sorted(self._engines)]

    @property
    def num_outstanding(self) -> int:
        return len(self._parked) + sum(len(engine.assigned) for engine in self._engines.values())

    @property
    def num_parked(self) -> int:
        return len(self._parked)

    def announce_when_ready(self, serving: Serving) -> None:
        """Tell the supervisor once HTTP listens (now) and the engine answers."""
        self._serving = serving
        self._announce()

    def _announce(self) -> None:
        if self._serving is None or not self._was_ready or self._router.closed:
            return
        if self._send(SUPERVISOR, self._serving):
            self._serving = None
        else:
            self._loop.call_later(SERVING_RETRY_S, self._announce)

    # -------------------------------------------------------------------------------------------- sequences out

    def new_id(self) -> int:
        """An id that no sequence in flight has."""
        self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        return self._next_id

    def submit(self, sequences: Iterable[Outstanding]) -> None:
        for sequence in sequences:
            self._place(sequence)

    def abort(self, sequences: Iterable[Outstanding]) -> None:
        """Nobody waits for these any more."""
        for sequence in sequences:
            if sequence.over:
                continue
            sequence.cancel()
            self._parked.pop(sequence.request_id, None)
            for engine in self._engines.values():
                if engine.assigned.pop(sequence.request_id, None) is not None:
                    self._abort_on(engine, sequence.request_id)
        self._flush_aborts()

    def fail_all(self, failure: Failure) -> None:
        """End everything in flight."""
        for engine in self._engines.values():
            for sequence in list(engine.assigned.values()):
                self._abort_on(engine, sequence.request_id)
                sequence.fail(failure)
            engine.assigned.clear()
        self._fail_parked(failure)
        self._flush_aborts()

    async def flush_cache(self) -> list[ControlReply]:
        """Every ready engine's answer. Raises `TimeoutError`."""
        waiting = []
        for engine in self._engines.values():
            if engine.state == "ready" and engine.identity is not None:
                control_id = self.new_id()
                self._controls[control_id] = future = self._loop.create_future()
                waiting.append(future)
                self._send(engine.identity, Control(control_id, "flush_cache"))
        async with asyncio.timeout(CONTROL_TIMEOUT_S):
            return [await future for future in waiting]

    def _place(self, sequence: Outstanding) -> None:
        """To the ready engine with the least to do; parked if there is none."""
        ready = [engine for engine in self._engines.values() if engine.state == "ready"]
        engine = min(ready, key=lambda candidate: len(candidate.assigned), default=None)
        if (
            engine is None
            or engine.identity is None
            or not self._send(engine.identity, sequence.submit_message())
        ):
            self._parked[sequence.request_id] = sequence
            return
        if sequence.accepted:
            self._metrics.count("penstock:resumed_sequences")
        engine.assigned[sequence.request_id] = sequence

    def _place_parked(self) -> None:
        parked, self._parked = self._parked, {}
        self.submit(parked.values())

    def _park(self, sequences: list[Outstanding]) -> None:
        for sequence in sequences:
            sequence.accepted = True
            sequence.restart()
            self._parked[sequence.request_id] = sequence

    def _fail_parked(self, failure: Failure) -> None:
        parked, self._parked = self._parked, {}
        for sequence in parked.values():
            sequence.fail(failure)

    def _abort_on(self, engine: Engine, request_id: int) -> None:
        if engine.identity is not None:
            self._aborts.setdefault(engine.identity, array("I")).append(request_id)

    def _flush_aborts(self) -> None:
        if self._aborts:
            aborts, self._aborts = self._aborts, {}
            for identity, ids in aborts.items():
                self._send(identity, Abort(ids.tobytes()))

    def _send(self, identity: bytes, message: ToEngine | ToSupervisor) -> bool:
        """False if the peer is not there."""
        return self._router.send(identity, encode(message))

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        def run() -> None:
            self._retries.discard(handle)
            call()

        handle = self._loop.call_later(delay_s, run)
        self._retries.add(handle)

    # ---------------------------------------------------------------------------------------------- messages in

    def _receive(self, identity: bytes, frame: bytes) -> None:
        try:
            message = decode_to_frontend(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("dropped a message of %d bytes from %r: %s", len(frame), identity, error)
            return
        self._handle(identity, message)

    def _handle(self, identity: bytes, message: ToFrontEnd) -> None:
        if isinstance(message, StepOutput):
            engine = self._by_identity.get(identity)
            if engine is not None:
                self._on_step(engine, message)
        elif isinstance(message, EngineStatus):
            self._on_engine_status(identity, message)
        elif isinstance(message, Rejected):
            engine = self._by_identity.get(identity)
            if engine is not None:
                self._on_rejected(engine, message)
        elif isinstance(message, FamilyStatus):
            self._on_family_status(message)
        else:
            future = self._controls.pop(message.control_id, None)
            if future is not None and not future.done():
                future.set_result(message)

    def _on_step(self, engine: Engine, output: StepOutput) -> None:
        """The hot path: one call a step, one `take` a sequence."""
        assigned = engine.assigned
        now = time.monotonic()
        finished = {finish.request_id: finish for finish in output.finished} if output.finished else NO_FINISH
        logprobs = self._sort_logprobs(engine, output) if output.logprobs else NO_LOGPROBS
        for first in output.first:
            self._on_first(assigned, first, now)
        for pooled in output.pooled:
            prompt = assigned.get(pooled.request_id)
            if isinstance(prompt, PooledPrompt):
                prompt.take_values(pooled.values)
        for predicted in output.predicted:
            sequence = assigned.get(predicted.request_id)
            if isinstance(sequence, Sequence):
                sequence.take_predicted(predicted)
        tokens = memoryview(output.tokens).cast("i").tolist()
        ids = memoryview(output.request_ids).cast("I").tolist()
        counts = memoryview(output.counts).cast("H").tolist()
        if output.drafted:
            self._on_drafted(assigned, ids, output)
        start = taken = 0
        for request_id, count in zip(ids, counts, strict=True):
            end = start + count
            sequence = assigned.get(request_id)
            if sequence is not None:
                finish = finished.pop(request_id, None) if finished else None
                taken += count
                self._take(engine, sequence, tokens[start:end], now, finish, logprobs.get(request_id))
            start = end
        for finish in finished.values():
            sequence = assigned.get(finish.request_id)
            if sequence is not None:
                self._take(engine, sequence, [], now, finish, None)
        self._metrics.tokens_came(taken)

    def _on_drafted(
        self, assigned: dict[int, Outstanding], request_ids: list[int], output: StepOutput
    ) -> None:
        drafted = memoryview(output.drafted).cast("H").tolist()
        accepted = memoryview(output.accepted).cast("H").tolist()
        for request_id, verified, right in zip(request_ids, drafted, accepted, strict=True):
            sequence = assigned.get(request_id) if verified else None
            if isinstance(sequence, Sequence) and sequence.drafts is not None:
                sequence.drafts.add(verified, right)

    def _take(
        self,
        engine: Engine,
        sequence: Outstanding,
        tokens: list[int],
        now: float,
        finish: Finish | None,
        logprobs: TokenLogprobs | None,
    ) -> None:
        try:
            stopped_here = sequence.take(tokens, now, finish, logprobs)
        except Exception:
            log.exception("a sequence could not take its output")
            stopped_here = finish is None
            sequence.fail(Failure(code="internal", message="internal error"))
        if sequence.over:
            engine.assigned.pop(sequence.request_id, None)
            if stopped_here:
                self._abort_on(engine, sequence.request_id)

    def _on_first(self, assigned: dict[int, Outstanding], first: FirstToken, now: float) -> None:
        sequence = assigned.get(first.request_id)
        if sequence is not None:
            sequence.start(first, now)

    def _sort_logprobs(self, engine: Engine, output: StepOutput) -> dict[int, TokenLogprobs]:
        """Those of output tokens by request; those of prompts are handed over at once."""
        found = {}
        for message in output.logprobs:
            if not message.is_prompt:
                found[message.request_id] = message
                continue
            sequence = engine.assigned.get(message.request_id)
            if isinstance(sequence, Sequence):
                sequence.take_prompt_logprobs(message)
        return found

    def _on_rejected(self, engine: Engine, message: Rejected) -> None:
        sequence = engine.assigned.pop(message.request_id, None)
        if sequence is None:
            return
        if message.code != "invalid" and (sequence.accepted or sequence.first_at):
            # It was accepted once, so it is never refused: it waits and asks again.
            self._parked[sequence.request_id] = sequence
            self._later(max(0.05, message.retry_after_s), self._place_parked)
            return
        sequence.fail(
            Failure(
                code=message.code,
                message=message.message,
                retry_after_s=message.retry_after_s,
                num_waiting=message.num_waiting,
                queue_limit=engine.info.max_num_queued_reqs if engine.info else 0,
            )
        )

    # ------------------------------------------------------------------------------------------ engines come and go

    def _on_engine_status(self, identity: bytes, status: EngineStatus) -> None:
        engine = self._engines.setdefault(status.engine_id, Engine(status.engine_id))
        if status.incarnation in engine.retired:
            return
        if status.incarnation != engine.incarnation:
            self._replace(engine, identity, status.incarnation)
        engine.state = status.state
        engine.detail = status.detail
        engine.load = status.load
        engine.seen_at = time.monotonic()
        engine.info = status.info or engine.info
        if status.state == "ready":
            self._on_ready()
        self._metrics.fold_gaps()
        if self.on_status is not None:
            self.on_status(status)

    def _replace(self, engine: Engine, identity: bytes, incarnation: int) -> None:
        """A new incarnation greets us: greet back, and take the sequences of the old one home."""
        if engine.identity is not None:
            self._by_identity.pop(engine.identity, None)
        self._park(engine.retire())
        engine.incarnation = incarnation
        engine.identity = identity
        self._by_identity[identity] = engine
        self._send(identity, Hello(self._frontend_id, self._incarnation))

    def _on_ready(self) -> None:
        if not self._was_ready:
            self._was_ready = True
            self._announce()
        if self._parked and not self._retries:
            self._place_parked()

    def _on_family_status(self, status: FamilyStatus) -> None:
        engine = self._engines.setdefault(status.engine_id, Engine(status.engine_id))
        if engine.incarnation not in (None, status.incarnation):
            return  # news about one that has been replaced already
        if engine.identity is not None:
            self._by_identity.pop(engine.identity, None)
        engine.retired.add(status.incarnation)
        self._park(engine.retire())
        engine.state = status.state
        engine.detail = status.reason
        if status.state == "failed" and all(other.state == "failed" for other in self._engines.values()):
            self._fail_parked(Failure(code="engine_failed", message=f"the engine failed: {status.reason}"))
        else:
            self._place_parked()
