"""What the scheduler hands to the device and gets back: `StepPlan` and `StepResult`.

Order is the contract: the device runs plans strictly in the order they were made, and within a step every row's new
KV is written (layer by layer) before any row attends. So a page filled by step n may be read by any row of step n or
later, and a page taken from a request while step n is in flight may be given to another request in step n+1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .arrays import Bool, Int32
from .messages import FinishReason
from .requests import Request


@dataclass(slots=True)
class SlotInit:
    """A slot got a (new or resumed) request before this step: its known tokens and sampling go to the device."""

    slot: int
    request: Request  # tokens, num_prompt_tokens, sampling


@dataclass(slots=True)
class PageUpdates:
    """Page-table entries of one KV group that changed: `table[slots[i], indexes[i]] = pages[i]`; all int32 (n,)."""

    slots: Int32
    indexes: Int32
    pages: Int32


@dataclass(slots=True)
class StepPlan:
    """One ragged batch. Rows 0 .. num_decode_rows-1 are decodes (sampled); chunks of prefill follow.

    Row i computes positions starts[i] .. starts[i]+lens[i]-1 of the request in slots[i]; the input token of each
    position is read from the device's token buffer, where earlier steps (perhaps one still in flight) wrote it.
    Where sample[i], the token after the row's last position is drawn, written to the device's token buffer and
    returned. Apply `inits` and `pages` before running. `expected_seconds` is what the scheduler expects a step with
    prefill to take, 0 where it has no opinion.

    A decode has one query token. With `drafts` its row may have up to drafts[i] more: tokens that the device proposes
    for the positions after it and verifies, of which it keeps those that would have been drawn. While such a row is in
    flight its slot's position is known to the device alone, so `starts` of decodes is an upper bound, as `lens` and
    `num_tokens` are; pages are there for all of it.

    `decode_tokens` are the input tokens of the decodes where the stages of a pipeline need them, which sample nothing: no
    earlier step in flight may then sample for a row of this one.
    """

    step: int
    slots: Int32  # (rows,)
    starts: Int32  # (rows,)
    lens: Int32  # (rows,)
    sample: Bool  # (rows,)
    num_decode_rows: int
    num_tokens: int
    inits: list[SlotInit] = field(default_factory=list)
    pages: list[PageUpdates] = field(default_factory=list)  # one per KV group
    expected_seconds: float = 0.0
    drafts: Int32 | None = None  # (rows,); None = nothing is verified, and all positions are what they are
    left: list[int] = field(default_factory=list)  # slots that their requests left since the last plan
    decode_tokens: Int32 | None = None  # (num_decode_rows,)


@dataclass(slots=True)
class RowLogprobs:
    """Log probabilities for one row of a plan; layouts as `messages.TokenLogprobs`.

    `row` indexes the plan. For a prompt row the entries cover the tokens at positions starts+1 .. starts+lens that
    belong to the prompt.
    """

    row: int
    is_prompt: bool
    token_ids: Int32
    logprobs: npt.NDArray[np.float32]
    ranks: Int32
    top_ids: Int32
    top_logprobs: npt.NDArray[np.float32]


@dataclass(slots=True)
class RowPooled:
    """What a pooling request whose prompt ended in row `row` of a plan asked for: float32 (n,)."""

    row: int
    values: npt.NDArray[np.float32]


@dataclass(slots=True)
class RowPredicted:
    """Of row `row`, whose request has a prediction, since it came into its slot: output tokens that were as predicted,
    and predicted tokens that were verified and not drawn."""

    row: int
    accepted: int
    rejected: int


@dataclass(slots=True)
class StepResult:
    """What a plan produced: `counts` int32 (rows,) new tokens per row (0 where not sampled), `tokens` int32 flat.

    `ended` are rows for which nothing is left that may come after their tokens (perhaps none), and how their requests
    end. `drafted` int32 (rows,), for a plan with drafts: how many each row did verify; one token more than were right
    is new, but in an ended row. Times are in seconds: the device's, and that of looking for drafts, which may be in it.
    """

    counts: Int32
    tokens: Int32
    logprobs: list[RowLogprobs] = field(default_factory=list)
    pooled: list[RowPooled] = field(default_factory=list)
    ended: list[tuple[int, FinishReason]] = field(default_factory=list)
    predicted: list[RowPredicted] = field(default_factory=list)
    device_seconds: float = 0.0
    draft_seconds: float = 0.0
    drafted: Int32 | None = None

    def accepted(self) -> Int32:
        """(rows,) how many of the `drafted` were right."""
        assert self.drafted is not None
        right: Int32 = self.counts - np.int32(1)
        right[[row for row, _ in self.ended]] += 1
        return np.clip(right, 0, self.drafted)


def check_counts(plan: StepPlan, result: StepResult) -> None:
    """AssertionError if `result` has not as many tokens in every row as `plan` asks for."""
    counts, sample = result.counts, plan.sample
    if plan.drafts is None and not result.ended:
        right = np.array_equal(counts, sample) and result.tokens.size == np.count_nonzero(sample)
    else:
        most = sample.astype(np.int32)
        least = most.copy()
        least[[row for row, _ in result.ended]] = 0
        if plan.drafts is not None:
            assert result.drafted is not None
            assert (result.drafted <= plan.drafts).all(), "more was drafted than there is room for"
            most += result.drafted
        right = bool(((least <= counts) & (counts <= most)).all()) and result.tokens.size == counts.sum()
    assert right, "every sampled row brings a token and at most one for each draft besides, the others none"
