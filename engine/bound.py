"""A plan with room for drafts, once it is known where its rows stand and what was drafted for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..scheduler.arrays import Int32, Rows
from ..scheduler.messages import FinishReason
from ..scheduler.plan import StepPlan
from ..spec.verify import Drafts, kept, num_right, offsets


@dataclass(frozen=True, slots=True)
class Bound:
    """A plan whose rows stand where they do, each decode with its drafts, in another order: those without come first.

    Its row i is row order[i] of the plan it was made from.
    """

    plan: StepPlan
    order: Rows
    drafts: Drafts  # of all rows

    def results(self, drawn: Int32) -> tuple[Int32, Int32, Int32]:
        """From `drawn`, a token for each position that a row draws at: tokens per row (rows,), these tokens flat, and
        how many drafts each row had (rows,), all in the order of the plan it was made from."""
        sampled = np.flatnonzero(self.plan.sample)
        drafts = self.drafts.take(sampled)
        accepted = num_right(drawn, drafts)
        tokens = Drafts(accepted + np.int32(1), drawn[kept(drafts.counts, accepted)])
        theirs = self.order[sampled]
        counts = np.zeros(self.order.size, np.int32)
        counts[theirs] = tokens.counts
        drafted = np.zeros(self.order.size, np.int32)
        drafted[theirs] = drafts.counts
        return counts, tokens.take(np.argsort(theirs)).tokens, drafted


@dataclass(slots=True)
class DrawnRows:
    """The n tokens that a step draws, one row's beside each other."""

    rows: Rows  # (n,) of the plan that the scheduler made
    slots: Int32  # (n,)
    positions: Int32  # (n,) of the tokens to be drawn
    last: Rows  # (n,) of the step's tokens, those whose states they are drawn from
    drafts: Drafts | None  # of the rows that draw; None: each draws one token

    def end(self, index: int, reason: FinishReason) -> End:
        """Its row cannot go on where token `index` is drawn."""
        offset = 0 if self.drafts is None else int(offsets(self.drafts.counts + np.int32(1))[index])
        return End(int(self.rows[index]), offset, reason)


@dataclass(frozen=True, slots=True)
class End:
    """Row `row` of a plan ends before its token `offset` of the step, should it come to that."""

    row: int
    offset: int
    reason: FinishReason


def cut_ends(
    counts: Int32, tokens: Int32, ends: list[End]
) -> tuple[Int32, Int32, list[tuple[int, FinishReason]]]:
    """`counts` (rows,) and flat `tokens` without those that rows cannot come to, and which rows end, with reasons."""
    left = counts.copy()
    ended = []
    for end in ends:
        if end.offset < left[end.row]:
            left[end.row] = end.offset
            ended.append((end.row, end.reason))
    return left, tokens[offsets(counts) < np.repeat(left, counts)], ended


def drawn_rows(plan: StepPlan, bound: Bound | None) -> DrawnRows:
    """What `plan` draws; it is the one of `bound`, if that is given."""
    rows = np.flatnonzero(plan.sample)
    slots, positions = plan.slots, plan.starts + plan.lens
    last = np.cumsum(plan.lens, dtype=np.intp) - 1
    if rows.size < plan.slots.size:
        slots, positions, last = slots[rows], positions[rows], last[rows]
    if bound is None:
        return DrawnRows(rows, slots, positions, last, None)
    drafts = bound.drafts.take(rows)
    if drafts.tokens.size:
        each = drafts.counts + np.int32(1)
        back = np.repeat(drafts.counts, each) - offsets(each)  # from the last token of its row
        rows, slots = np.repeat(rows, each), np.repeat(slots, each)
        positions, last = np.repeat(positions, each) - back, np.repeat(last, each) - back
    return DrawnRows(bound.order[rows], slots, positions, last, drafts if drafts.tokens.size else None)
