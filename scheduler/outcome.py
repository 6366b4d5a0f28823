"""What a committed step brought to requests that still live."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .arrays import Int32
from .plan import RowLogprobs, RowPooled
from .requests import Request


@dataclass(slots=True)
class StepOutcome:
    """What a committed step brought to live requests; the arrays have one entry per request with new tokens."""

    frontend_ids: Int32
    request_ids: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.uint16]
    tokens: Int32  # (sum of counts,)
    first: list[tuple[Request, float, float]] = field(default_factory=list)  # queue and prefill seconds
    finished: list[Request] = field(default_factory=list)
    logprobs: list[tuple[Request, RowLogprobs]] = field(default_factory=list)
    pooled: list[tuple[Request, RowPooled]] = field(default_factory=list)
    predicted: list[Request] = field(default_factory=list)  # whose counts of predicted tokens are new
    drafted: npt.NDArray[np.uint16] | None = None  # had verified; None: nobody had
    accepted: npt.NDArray[np.uint16] | None = None  # of these


def undelivered_scores(request: Request, start: int, entry: RowLogprobs) -> RowLogprobs | None:
    """The part of a prompt row (its first token at position `start`) that was not delivered before a preemption."""
    again = max(0, request.num_scored - start)
    request.num_scored = max(request.num_scored, start + len(entry.token_ids))
    if again >= len(entry.token_ids):
        return None
    return part(entry, slice(again, None)) if again else entry


def first_scores(entry: RowLogprobs, count: int) -> RowLogprobs:
    """Those of the first `count` tokens of a row."""
    return part(entry, slice(count)) if count < len(entry.token_ids) else entry


def part(entry: RowLogprobs, tokens: slice) -> RowLogprobs:
    return RowLogprobs(
        row=entry.row,
        is_prompt=entry.is_prompt,
        token_ids=entry.token_ids[tokens],
        logprobs=entry.logprobs[tokens],
        ranks=entry.ranks[tokens],
        top_ids=entry.top_ids[tokens],
        top_logprobs=entry.top_logprobs[tokens],
    )
