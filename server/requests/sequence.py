"""The state of one sequence in flight: what was asked, what has come, and where its text goes.

It outlives the engine that works on it: `submit_message` at any moment says all that another engine needs to go on.
"""

from __future__ import annotations

import time
from array import array
from typing import Literal, NamedTuple, Protocol, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ...scheduler.messages import (
    Finish,
    FinishReason,
    FirstToken,
    Predicted,
    SamplingParams,
    Submit,
    TokenLogprobs,
)
from ..metrics.catalogue import Metrics
from ..text.detokenizer import Detokenizer
from ..text.stops import StopStrings
from .draft_counts import DraftCounts

FailureCode: TypeAlias = Literal["queue_full", "invalid", "draining", "engine_failed", "internal", "shutdown"]


class Failure(Struct, frozen=True, kw_only=True):
    """Why a sequence ended without its answer."""

    code: FailureCode
    message: str
    retry_after_s: float = 1.0
    num_waiting: int = 0
    queue_limit: int = 0


class TokenLogprob(NamedTuple):
    """Log probability of one token and of the best alternatives at its position (best first)."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class Sink(Protocol):
    """Where a sequence's output goes: a part of a stream, or of a whole answer."""

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None:
        """Log probabilities of prompt positions 1 .. ; once, before any text."""

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None:
        """New text (maybe none yet) and, if asked for, the log probabilities of the tokens it was made from."""

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        """The sequence is complete."""

    def fail(self, failure: Failure) -> None:
        """The sequence will never be complete."""


class Sequence:
    """One prompt being continued.

    `take` is the only per-token work of the front end; its first lines are the fast path.
    """

    __slots__ = (
        "_detokenizer",
        "_include_stop",
        "_metrics",
        "_named_stop_ids",
        "_predicted_before",
        "_prompt_pending",
        "_simple",
        "_sink",
        "_stops",
        "accepted",
        "accepted_prediction_tokens",
        "arrival",
        "cache_salt",
        "cached_tokens",
        "drafts",
        "first_at",
        "gaps",
        "last_at",
        "num_preemptions",
        "output",
        "over",
        "prediction",
        "prefill_s",
        "priority",
        "prompt",
        "queue_s",
        "reasoning_tokens",
        "rejected_prediction_tokens",
        "request_id",
        "sampling",
    )

    def __init__(
        self,
        *,
        request_id: int,
        prompt: array[int],
        sampling: SamplingParams,
        detokenizer: Detokenizer,
        sink: Sink,
        metrics: Metrics,
        stop: list[str],
        include_stop: bool,
        named_stop_ids: frozenset[int] = frozenset(),
        priority: int = 0,
        cache_salt: str = "",
        prediction: bytes = b"",
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.sampling = sampling
        self.priority = priority
        self.cache_salt = cache_salt
        self.prediction = prediction
        self.output: array[int] = array("i")
        self.over = False
        self.accepted = False  # an engine has had it: a full queue is no reason any more to refuse it
        self.arrival = time.monotonic()
        self.first_at = 0.0
        self.last_at = 0.0
        self.queue_s = 0.0
        self.prefill_s = 0.0
        self.cached_tokens = 0
        self.num_preemptions = 0
        self.reasoning_tokens: int | None = None  # up to the thinking's end; None: not looked for
        self.accepted_prediction_tokens = 0
        self.rejected_prediction_tokens = 0
        self._predicted_before = (0, 0)  # by engines that are gone
        self.drafts: DraftCounts | None = None  # None: nobody wants to know
        self.gaps = metrics.token_gaps
        self._metrics = metrics
        self._detokenizer = detokenizer
        self._sink = sink
        self._stops = StopStrings(stop, include=include_stop) if stop else None
        self._include_stop = include_stop
        self._named_stop_ids = named_stop_ids
        self._prompt_pending: list[TokenLogprob] = []
        self._simple = self._stops is None and sampling.logprobs < 0

    def submit_message(self) -> Submit:
        """The request as an engine needs it now: resumed, if output has come already."""
        sampling = self.sampling
        return Submit(
            request_id=self.request_id,
            tokens=self.prompt.tobytes() + self.output.tobytes(),
            num_prompt_tokens=len(self.prompt),
            sampling=sampling,
            priority=self.priority,
            cache_salt=self.cache_salt,
            prediction=self.prediction,
        )

    def hand_on_each_token(self) -> None:
        """The sink wants the text of every token by itself, also when a step brings several."""
        self._simple = False

    def restart(self) -> None:
        """The engine that had it is gone: forget what was only half delivered."""
        self._prompt_pending = []
        self._predicted_before = (self.accepted_prediction_tokens, self.rejected_prediction_tokens)

    def take_predicted(self, predicted: Predicted) -> None:
        """How its prediction fared since it was submitted to this engine."""
        accepted, rejected = self._predicted_before
        self.accepted_prediction_tokens = accepted + predicted.accepted
        self.rejected_prediction_tokens = rejected + predicted.rejected

    def start(self, first: FirstToken, now: float) -> None:
        """The first token of this submission comes; a resumed sequence has had its first one long ago."""
        if self.first_at:
            return
        self.first_at = now
        self.cached_tokens = min(max(first.cached_tokens, 0), len(self.prompt))
        self.queue_s = first.queue_s
        self.prefill_s = first.prefill_s
        self._metrics.sequence_started(now - self.arrival, len(self.prompt), self.cached_tokens)

    def take(
        self, tokens: list[int], now: float, finish: Finish | None, logprobs: TokenLogprobs | None
    ) -> bool:
        """New tokens; returns True if the sequence is over for us though the engine goes on (a stop string)."""
        if self.last_at:
            self.gaps.append(now - self.last_at)
        self.last_at = now
        if self._simple and finish is None:
            self.output.extend(tokens)
            text = self._detokenizer.push(tokens)
            if text:
                self._sink.text(text, None)
            return False
        if finish is not None:
            self.num_preemptions = finish.num_preemptions
        return self._take_carefully(tokens, finish, unpack_logprobs(logprobs) if logprobs else [])

    def _take_carefully(self, tokens: list[int], finish: Finish | None, entries: list[TokenLogprob]) -> bool:
        """Token by token: a stop string may end the sequence in the middle of a step's tokens."""
        hidden = self._hidden_last_token(tokens, finish)
        want_logprobs = self.sampling.logprobs >= 0
        for index, token in enumerate(tokens):
            self.output.append(token)
            text = "" if index == hidden else self._detokenizer.push([token])
            matched = None
            if self._stops is not None and len(self.output) > self.sampling.min_tokens:
                text, matched = self._stops.push(text)
            own = entries[index : index + 1] if want_logprobs else None
            if text or own:
                self._sink.text(text, own)
            if matched is not None:
                self.end("stop", matched)
                return finish is None
        if finish is None:
            return False
        if finish.reason == "error":
            self.fail(Failure(code="internal", message="the engine could not continue this request"))
            return False
        tail = self._detokenizer.flush()
        matched = None
        if self._stops is not None:
            tail, matched = self._stops.push(tail)
            if matched is None:
                tail += self._stops.flush()
        if tail:
            self._sink.text(tail, [] if want_logprobs else None)
        if matched is not None:
            self.end("stop", matched)
        else:
            self.end(finish.reason, self._stop_token(finish))
        return False

    def _hidden_last_token(self, tokens: list[int], finish: Finish | None) -> int:
        """Index of the stop token whose text is not part of the answer, or -1."""
        if finish is None or finish.reason != "stop" or not tokens or self._include_stop:
            return -1
        return len(tokens) - 1 if tokens[-1] in self.sampling.stop_token_ids else -1

    def _stop_token(self, finish: Finish) -> int | None:
        """The stop token that ended it, if the client named it: the model's own EOS is no news."""
        if finish.reason != "stop" or not self.output:
            return None
        last: int = self.output[-1]
        return last if last in self._named_stop_ids else None

    def take_prompt_logprobs(self, message: TokenLogprobs) -> None:
        """A piece of the prompt's log probabilities; handed on when all positions but the first are there."""
        self._prompt_pending += unpack_logprobs(message)
        if len(self._prompt_pending) >= len(self.prompt) - 1:
            self._sink.prompt_logprobs(self._prompt_pending)
            self._prompt_pending = []
            self.sampling = without_prompt_logprobs(self.sampling)

    def end(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        if self.over:
            return
        self._metrics.sequence_finished(
            reason,
            now=time.monotonic(),
            arrival=self.arrival,
            first_at=self.first_at,
            last_at=self.last_at,
            queue_s=self.queue_s,
            prefill_s=self.prefill_s,
            num_output_tokens=len(self.output),
        )
        self._sink.finish(reason, stop_reason)
        self.over = True  # not before: what breaks on the way to here can still be told by `fail`

    def fail(self, failure: Failure) -> None:
        if self.over:
            return
        self.over = True
        self._metrics.sequence_refused(failure.code)
        self._sink.fail(failure)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.over = True


def without_prompt_logprobs(sampling: SamplingParams) -> SamplingParams:
    """The same sampling for a resumed sequence: what the prompt had to tell has been told."""
    return replace(sampling, prompt_logprobs=-1)


def unpack_logprobs(message: TokenLogprobs) -> list[TokenLogprob]:
    """One entry a position, from the packed arrays."""
    tokens = memoryview(message.token_ids).cast("i").tolist()
    logprobs = memoryview(message.logprobs).cast("f").tolist()
    ranks = memoryview(message.ranks).cast("i").tolist()
    top_ids = memoryview(message.top_ids).cast("i").tolist() if message.k else []
    top_logprobs = memoryview(message.top_logprobs).cast("f").tolist() if message.k else []
    k = message.k
    return [
        TokenLogprob(
            token,
            logprob,
            rank,
            list(zip(top_ids[i * k : i * k + k], top_logprobs[i * k : i * k + k], strict=True)),
        )
        for i, (token, logprob, rank) in enumerate(zip(tokens, logprobs, ranks, strict=True))
    ]
