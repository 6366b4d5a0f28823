"""A step that the device has been given: what to fetch of it, and the `StepResult` once that has arrived."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ..scheduler.arrays import Int32
from ..scheduler.messages import FinishReason, PoolingParams
from ..scheduler.plan import RowLogprobs, RowPooled, RowPredicted, StepResult
from .bound import Bound, End, cut_ends
from .device_thread import Promise
from .logprobs import ScoredRow, Scores
from .pooling import Pooler
from .streams import Fetch, Stream, Timer


@dataclass(slots=True, eq=False)
class EnqueuedStep:
    """Made by the device's thread, read by whoever wants the result. What is fetched: the tokens, then what was scored,
    then the states of prompts to be pooled. Rows are those of the plan that the
    scheduler made, but in what is `bound`."""

    counts: Int32  # (rows,) tokens drawn, if nothing was drafted; those of ended rows mean nothing
    timer: Timer
    tokens: torch.Tensor | None = None
    scored: list[tuple[Scores, list[ScoredRow]]] = field(default_factory=list)
    pooled_rows: list[tuple[int, PoolingParams]] = field(default_factory=list)
    pooled: list[torch.Tensor] = field(default_factory=list)
    ended: list[End] = field(default_factory=list)
    fetch: Fetch | None = None
    bound: Bound | None = None  # the plan with its drafts, if there are any
    is_granted: bool = False  # there was room for drafts
    draft_seconds: float = 0.0  # in which they were looked for
    predicted: Callable[[], list[RowPredicted]] = list  # asked for when the tokens are there
    seconds: float | None = None  # of the device, once asked for

    def start_fetch(self, stream: Stream) -> Fetch:
        """All is enqueued: the results follow."""
        tensors = [] if self.tokens is None else [self.tokens]
        for scores, _ in self.scored:
            tensors += scores.tensors
        fetch = self.fetch = stream.fetch(tensors + self.pooled)
        self.timer.stop()
        return fetch

    def wait(self, timeout_s: float) -> bool:
        """Whether the device is through with it, after at most `timeout_s`."""
        assert self.fetch is not None
        return self.fetch.wait(timeout_s)

    def drawn(self) -> Int32:
        """The tokens, one for each position that draws, waited for."""
        assert self.fetch is not None
        tokens: Int32 = self.fetch.arrays()[0]
        return tokens

    def device_seconds(self) -> float:
        """What the step took, waited for."""
        if self.seconds is None:
            self.seconds = self.timer.seconds()
        return self.seconds

    def collect(self, pooler: Pooler) -> StepResult:
        """The result, waited for; raises what went wrong on the device."""
        assert self.fetch is not None
        arrays = iter(self.fetch.arrays())
        counts, tokens = self.counts, np.zeros(0, np.int32) if self.tokens is None else next(arrays)
        drafted: Int32 | None = None
        if self.bound is not None:
            counts, tokens, drafted = self.bound.results(tokens)
        elif self.is_granted:
            drafted = np.zeros(counts.size, np.int32)
        ended: list[tuple[int, FinishReason]] = []
        if self.ended:
            counts, tokens, ended = cut_ends(counts, tokens, self.ended)
        logprobs: list[RowLogprobs] = []
        for scores, rows in self.scored:
            found = [next(arrays) for _ in scores.tensors]
            logprobs += [row.of(found, None if row.is_prompt else int(counts[row.row])) for row in rows]
        pooled: list[RowPooled] = []
        if self.pooled_rows:
            vectors = pooler.vectors(list(arrays), [params for _, params in self.pooled_rows])
            rows_of = [row for row, _ in self.pooled_rows]
            pooled = [RowPooled(row, vector) for row, vector in zip(rows_of, vectors, strict=True)]
        return StepResult(
            counts=counts,
            tokens=tokens,
            logprobs=logprobs,
            pooled=pooled,
            ended=ended,
            device_seconds=self.device_seconds(),
            draft_seconds=self.draft_seconds,
            drafted=drafted,
            predicted=self.predicted(),
        )


class LaunchedStep:
    """The handle of a step on a device that runs ahead: enqueued by one thread, collected by another."""

    __slots__ = ("_enqueued", "_pooler")

    def __init__(self, enqueued: Promise[EnqueuedStep], pooler: Pooler) -> None:
        self._enqueued = enqueued
        self._pooler = pooler

    def wait(self, timeout_s: float) -> bool:
        """Whether there is an outcome, after at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        if not self._enqueued.wait(timeout_s):
            return False
        return self._enqueued.failed or self._enqueued.result().wait(max(0.0, deadline - time.monotonic()))

    def result(self) -> StepResult:
        """Wait for the outcome; raises what went wrong in the step, on the host or on the device."""
        return self._enqueued.result().collect(self._pooler)
