"""An engine without a model: it speaks the real messages over real ZMQ and makes tokens that only depend on the prompt.

The token at a position is the same whoever asks and whenever, so a resumed sequence must continue exactly. Tests
script it: what it says, how far it may go, what it refuses, when it dies.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import zmq
from fake_pooling import fake_values
from penstock.scheduler.messages import (
    Abort,
    Control,
    ControlReply,
    EngineInfo,
    EngineLoad,
    EngineStatus,
    FamilyStatus,
    Finish,
    FinishReason,
    FirstToken,
    Hello,
    Pooled,
    PoolingInfo,
    Rejected,
    Serving,
    StepOutput,
    Submit,
    Task,
    TokenLogprobs,
    decode_to_engine,
    decode_to_supervisor,
    encode,
)

LIMIT_S = 10.0
FIRST_ORDINARY = 3  # ids below are special tokens


def fake_token(prompt: bytes, position: int, seed: int, vocab_size: int) -> int:
    """The token at `position` (0 = first after the prompt) of a model that knows nothing."""
    key = prompt + position.to_bytes(4, "little") + seed.to_bytes(8, "little")
    return FIRST_ORDINARY + zlib.crc32(key) % (vocab_size - FIRST_ORDINARY)


@dataclass
class Running:
    submit: Submit
    prompt: bytes
    output: list[int]
    told_first: bool = False
    script: list[int] | None = None


@dataclass
class Seen:
    """What has arrived."""

    hellos: list[Hello] = field(default_factory=list)
    submits: list[Submit] = field(default_factory=list)
    aborted: set[int] = field(default_factory=set)
    controls: list[Control] = field(default_factory=list)


class FakeEngine:
    """Runs in a thread from `start` to `stop` (which tells nobody: that is how an engine dies)."""

    def __init__(
        self,
        endpoints: list[str],
        *,
        vocab_size: int = 420,
        incarnation: int = 1,
        max_model_len: int = 256,
        tokens_per_step: int = 1,
        drafts: int = 0,
        tasks: tuple[Task, ...] = ("generate",),
        pooling: PoolingInfo | None = None,
    ) -> None:
        self.endpoints = endpoints
        self.vocab_size = vocab_size
        self.incarnation = incarnation
        self.tokens_per_step = tokens_per_step
        self.drafts = drafts  # which it says it had for every step, all but one token of it being one
        self.info = EngineInfo(
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            page_size=16,
            num_pages=64,
            max_num_seqs=8,
            max_num_batched_tokens=512,
            max_num_queued_reqs=4,
            dtype="float32",
            kv_cache_dtype="float32",
            device="cpu",
            attention_backend="torch",
            weight_bytes=1,
            kv_cache_bytes=1,
            startup_seconds={"load_weights": 0.5},
            num_speculative_tokens=drafts,
            tasks=tasks,
            pooling=pooling,
        )
        self.seen = Seen()
        self.running: dict[tuple[int, int], Running] = {}
        self.changed = threading.Condition()
        self.scripts: list[tuple[list[int], bool]] = []  # (tokens, only for prompts not scripted yet)
        self.script: list[int] | None = None  # what to say instead of fake tokens
        self.reject: Callable[[Submit], Rejected | None] = lambda submit: None
        self.steps_allowed: int | None = None  # None = as many as it likes
        self.load = EngineLoad()
        self.cached_tokens = 0
        self.finish_with_error = False
        self.finish_reason: FinishReason | None = None  # of whatever ends, instead of the true one
        self._stop = False
        self._send_status = True
        self._thread = threading.Thread(target=self._run, daemon=True)

    # --------------------------------------------------------------------------------------------- for the tests

    def start(self) -> FakeEngine:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop = True
        self._thread.join(LIMIT_S)

    def allow(self, steps: int | None) -> None:
        with self.changed:
            self.steps_allowed = steps

    def report(self, **load: object) -> None:
        """New numbers, told to the front ends at once."""
        self.load = EngineLoad(**load)
        self._send_status = True

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, LIMIT_S), f"waited for {what}"

    def expected(self, prompt: list[int], count: int, seed: int = 0) -> list[int]:
        data = np.array(prompt, "<i4").tobytes()
        return [fake_token(data, position, seed, self.vocab_size) for position in range(count)]

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        context = zmq.Context()
        sockets = []
        for endpoint in self.endpoints:
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.IDENTITY, f"engine:0:{self.incarnation}".encode())
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, 5)
            socket.connect(endpoint)
            sockets.append(socket)
        poller = zmq.Poller()
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        while not self._stop:
            if self._send_status:
                self._send_status = False
                for socket in sockets:
                    socket.send(encode(self.status()))
            busy = self.running and self.steps_allowed != 0
            poller.poll(0 if busy else 5)
            with self.changed:
                for frontend, socket in enumerate(sockets):
                    self._receive(frontend, socket)
                if self.running and self.steps_allowed != 0:
                    if self.steps_allowed is not None:
                        self.steps_allowed -= 1
                    self._step(sockets)
                self.changed.notify_all()
        for socket in sockets:
            socket.close()
        context.term()

    def status(self) -> EngineStatus:
        return EngineStatus(
            engine_id=0, incarnation=self.incarnation, state="ready", info=self.info, load=self.load
        )

    def _receive(self, frontend: int, socket: zmq.Socket) -> None:
        while True:
            try:
                message = decode_to_engine(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            match message:
                case Hello():
                    self.seen.hellos.append(message)
                    socket.send(encode(self.status()))
                case Submit():
                    self.seen.submits.append(message)
                    rejected = self.reject(message)
                    if rejected is not None:
                        socket.send(encode(rejected))
                        continue
                    prompt = message.tokens[: 4 * message.num_prompt_tokens]
                    output = np.frombuffer(message.tokens, "<i4")[message.num_prompt_tokens :].tolist()
                    self.running[frontend, message.request_id] = Running(
                        message, prompt, output, script=self.script
                    )
                case Abort():
                    ids = np.frombuffer(message.request_ids, "<u4").tolist()
                    self.seen.aborted |= set(ids)
                    for request_id in ids:
                        self.running.pop((frontend, request_id), None)
                case Control():
                    self.seen.controls.append(message)
                    socket.send(encode(ControlReply(message.control_id, True, "3 pages dropped")))

    def _step(self, sockets: list[zmq.Socket]) -> None:
        for frontend, socket in enumerate(sockets):
            mine = {key[1]: running for key, running in self.running.items() if key[0] == frontend}
            if mine:
                socket.send(encode(self._output(frontend, mine)))

    def _output(self, frontend: int, mine: dict[int, Running]) -> StepOutput:
        ids, counts, tokens = [], [], []
        first, finished, logprobs, pooled = [], [], [], []
        for request_id, running in mine.items():
            if running.submit.pooling is not None:
                assert self.info.pooling is not None
                first.append(FirstToken(request_id, self.cached_tokens, 0.001, 0.002))
                finished.append(Finish(request_id, "error" if self.finish_with_error else "stop", 0))
                values = fake_values(running.prompt, running.submit.pooling, self.info.pooling)
                pooled.append(Pooled(request_id, values.tobytes()))
                del self.running[frontend, request_id]
                continue
            sampling = running.submit.sampling
            if not running.told_first:
                running.told_first = True
                first.append(FirstToken(request_id, self.cached_tokens, 0.001, 0.002))
                if sampling.prompt_logprobs >= 0:
                    prompt = np.frombuffer(running.prompt, "<i4").tolist()
                    logprobs.append(fake_logprobs(request_id, True, prompt[1:], sampling.prompt_logprobs))
            new: list[int] = []
            reason = None
            while len(new) < self.tokens_per_step and reason is None:
                token = self._next(running)
                running.output.append(token)
                new.append(token)
                if token in sampling.stop_token_ids and len(running.output) > sampling.min_tokens:
                    reason = "stop"
                elif len(running.output) >= sampling.max_tokens:
                    reason = "length"
            if reason is not None:
                reason = self.finish_reason or reason
            if self.finish_with_error:
                reason = "error"
            ids.append(request_id)
            counts.append(len(new))
            tokens += new
            if sampling.logprobs >= 0:
                logprobs.append(fake_logprobs(request_id, False, new, sampling.logprobs))
            if reason is not None:
                finished.append(Finish(request_id, reason, 0))
                del self.running[frontend, request_id]
        drafted = [self.drafts] * len(ids) if self.drafts else []
        return StepOutput(
            drafted=np.array(drafted, "<u2").tobytes(),
            accepted=np.array([count - 1 for count in counts] if drafted else [], "<u2").tobytes(),
            request_ids=np.array(ids, "<u4").tobytes(),
            counts=np.array(counts, "<u2").tobytes(),
            tokens=np.array(tokens, "<i4").tobytes(),
            first=first,
            finished=finished,
            logprobs=logprobs,
            pooled=pooled,
        )

    def _next(self, running: Running) -> int:
        position = len(running.output)
        if running.script is not None:
            return running.script[position] if position < len(running.script) else 2
        sampling = running.submit.sampling
        seed = sampling.seed if sampling.temperature > 0 else 0
        return fake_token(running.prompt, position, seed, self.vocab_size)


def fake_logprobs(request_id: int, is_prompt: bool, tokens: list[int], k: int) -> TokenLogprobs:
    """-0.5 for every token, the alternatives are the next ids."""
    n = len(tokens)
    top_ids = np.array([[token + j for j in range(k)] for token in tokens], "<i4").reshape(n, k)
    top = np.tile(np.array([-0.5 - j for j in range(k)], "<f4"), (n, 1))
    return TokenLogprobs(
        request_id=request_id,
        is_prompt=is_prompt,
        token_ids=np.array(tokens, "<i4").tobytes(),
        logprobs=np.full(n, -0.5, "<f4").tobytes(),
        ranks=np.ones(n, "<i4").tobytes(),
        k=k,
        top_ids=top_ids.tobytes(),
        top_logprobs=top.astype("<f4").tobytes(),
    )


class FakeSupervisor:
    """The supervisor's end of the link."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"supervisor")
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, int(LIMIT_S * 1000))
        self._socket.connect(endpoint)

    def serving(self) -> Serving:
        return decode_to_supervisor(self._socket.recv())

    def say(self, state: str, reason: str, incarnation: int = 1) -> None:
        self._socket.send(encode(FamilyStatus(0, incarnation, state, reason)))

    def close(self) -> None:
        self._socket.close()
        self._context.term()
