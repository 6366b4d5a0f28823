"""What one request is to the scheduler: its tokens, its sampling and the table of states it may pass through."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from .arrays import Int32
from .messages import FinishReason, PoolingParams, SamplingParams
from .radix import Node


class State(Enum):
    NEW = "new"  # not yet given to a scheduler
    WAITING = "waiting"  # queued for the first time
    RUNNING = "running"  # has a slot and pages
    PREEMPTED = "preempted"  # queued again; everything it had produced is kept as tokens
    FINISHED = "finished"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.NEW: frozenset({State.WAITING}),
    State.WAITING: frozenset({State.RUNNING, State.FINISHED}),
    State.RUNNING: frozenset({State.PREEMPTED, State.FINISHED}),
    State.PREEMPTED: frozenset({State.RUNNING, State.FINISHED}),
    State.FINISHED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Request:
    """One sequence to continue. `tokens` (int32) is the prompt and the output known so far.

    While the request runs, its tokens grow in the scheduler's slot arrays; `tokens` is brought up to date when it
    is preempted or finished. `key` is the owner's and opaque here; `frontend_id` and `request_id` come back in
    `StepOutcome`'s arrays. Times are seconds of the clock that the scheduler is given.
    """

    key: object
    tokens: Int32
    num_prompt_tokens: int
    sampling: SamplingParams
    pooling: PoolingParams | None = None  # with it nothing is drawn: max_tokens is 0
    grammar: object = None  # compiled, for the runner; opaque here
    prediction: Int32 | None = None  # (p,) tokens that the output is expected to be
    priority: int = 0  # lower runs first
    cache_salt: str = ""
    arrival: float = 0.0
    frontend_id: int = 0
    request_id: int = 0

    state: State = field(default=State.NEW, init=False)
    slot: int = field(default=-1, init=False)
    num_cached_tokens: int = field(
        default=0, init=False
    )  # prompt tokens found in the cache at first admission
    num_preemptions: int = field(default=0, init=False)
    num_failures: int = field(default=0, init=False)  # failed steps that named it
    finish_reason: FinishReason | None = field(default=None, init=False)
    admitted_at: float | None = field(default=None, init=False)  # first admission
    first_token_at: float | None = field(default=None, init=False)
    num_scored: int = field(
        default=0, init=False
    )  # leading positions whose prompt log probabilities were delivered

    # of the output's tokens: as predicted, and predicted but not drawn; in earlier slots and in this one
    predicted_before: tuple[int, int] = field(default=(0, 0), init=False)
    predicted_here: tuple[int, int] = field(default=(0, 0), init=False)

    # the scheduler's own notes
    sequence: int = field(default=0, init=False)  # order of `add`, breaks ties of equal arrival
    node: Node | None = field(
        default=None, init=False
    )  # waiting: deepest match seen; running: deepest node held
    detached: bool = field(default=False, init=False)  # its further pages are private until it ends
    data: bytes = field(default=b"", init=False)  # `tokens` as bytes while it is being prefilled

    def __post_init__(self) -> None:
        self.tokens = np.ascontiguousarray(self.tokens, dtype=np.int32)
        if not 1 <= self.num_prompt_tokens <= len(self.tokens):
            raise ValueError(
                f"num_prompt_tokens is {self.num_prompt_tokens}, it must lie between 1 and the {len(self.tokens)} "
                "tokens given"
            )
        assert self.pooling is None or self.sampling.max_tokens == 0, "a pooled prompt is not continued"

    @property
    def rank(self) -> tuple[int, float, int]:
        """Smaller runs first: priority, then arrival."""
        return (self.priority, self.arrival, self.sequence)

    def move(self, state: State) -> None:
        """Enter `state`; an illegal transition is a bug."""
        assert state in TRANSITIONS[self.state], f"request {self.key!r}: {self.state.name} -> {state.name}"
        self.state = state

    @property
    def predicted(self) -> tuple[int, int]:
        """Output tokens that were as predicted, and predicted tokens that were verified and not drawn."""
        before, here = self.predicted_before, self.predicted_here
        return (before[0] + here[0], before[1] + here[1])

    def token_limit(self, max_model_len: int) -> int:
        """Tokens, prompt included, at which it ends with reason `length`."""
        return min(self.num_prompt_tokens + self.sampling.max_tokens, max_model_len)

    def reusable_tokens(self) -> int:
        """The longest cached prefix it may use: one token must be computed, and prompt scores need their logits."""
        most = len(self.tokens) - 1
        if self.sampling.prompt_logprobs >= 0 and self.num_scored < self.num_prompt_tokens - 1:
            return min(most, self.num_scored)
        return most
