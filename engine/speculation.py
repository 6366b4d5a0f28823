"""Speculation with a drafter on the host: gives plans the drafts they have room for, and follows what became of them.

A plan with room for drafts says how many tokens a row may verify at most, and not yet where it stands: that depends on
how many drafts of the step before were right. So before such a step is enqueued its predecessors' tokens are waited for
(`settle`), then drafts are made from them (`bind`). Steps without drafts, in them or in flight before them, wait for
nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..scheduler.arrays import Bool, Int32, Rows
from ..scheduler.plan import RowPredicted, StepPlan
from ..spec.adaptive import DraftLengths
from ..spec.interface import HostDrafter
from ..spec.step_cost import StepCost
from ..spec.verify import Drafts, kept, num_right
from .bound import Bound
from .enqueued import EnqueuedStep

# (slots, most, drafts) -> what may be verified of the drafts, at most so many tokens, perhaps with other tokens behind
# them; and how many of each row's were drafted
Admit = Callable[[Int32, Int32, Drafts], tuple[Drafts, Int32]]


@dataclass(frozen=True, slots=True)
class Origins:
    """Where each row's drafts are from: how the drafter's came about, and how many are its own. Both int32 (n,)."""

    sources: Int32
    counts: Int32

    def take(self, rows: Rows) -> Origins:
        return Origins(self.sources[rows], self.counts[rows])


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A step whose tokens may not be there yet: its rows that draw, and what of them belongs to which request."""

    step: EnqueuedStep
    num_tokens: int  # of the step; 0 where its time teaches nothing
    slots: Int32  # (n,)
    positions: Int32  # (n,) of the first token that each draws
    drafts: Drafts
    origins: Origins  # of these drafts
    generations: Int32  # (n,) of the slots


class Speculation:
    """Called by the device's thread, as the runner is; `predicted` by whoever collects a step's results."""

    def __init__(
        self, num_slots: int, drafter: HostDrafter, *, max_draft_tokens: int, adaptive: bool = True
    ) -> None:
        """Without `adaptive` whatever is drafted is verified."""
        self._drafter = drafter
        self._lengths = DraftLengths(num_slots, max_draft_tokens, drafter.num_sources) if adaptive else None
        self._cost = StepCost()
        self._next: Int32 = np.zeros(num_slots, np.int32)  # position of a decoding slot's newest token
        self._generation: Int32 = np.zeros(num_slots, np.int32)  # odd while a request is there
        self._predicting: Bool = np.zeros(num_slots, np.bool_)  # has a prediction
        self._unsettled: deque[Unsettled] = deque()
        self._lock = threading.Lock()  # around what a step's results change

    # ------------------------------------------------------------------------------------------------ coming and going

    def start(
        self,
        slot: int,
        tokens: Int32,
        num_prompt_tokens: int,
        *,
        prediction: Int32 | None = None,
        cache_salt: str = "",
    ) -> None:
        """A request came into the slot, with its prompt and the output it has."""
        self.stop(slot)
        with self._lock:
            self._generation[slot] += 1
            self._predicting[slot] = prediction is not None and prediction.size
            self._drafter.start(
                slot, tokens, prediction, num_prompt_tokens=num_prompt_tokens, cache_salt=cache_salt
            )
            if self._lengths is not None:
                self._lengths.start(slot)

    def stop(self, slot: int) -> None:
        """The slot's request is gone."""
        with self._lock:
            if self._generation[slot] % 2:
                self._generation[slot] += 1
                self._drafter.stop(slot)

    # ------------------------------------------------------------------------------------------------------ each step

    def settle(self, plan: StepPlan) -> None:
        """Take in earlier steps, before `plan` is enqueued: those whose tokens are there; all of them, waited for, if
        it cannot do without."""
        with self._lock:
            while self._unsettled and (plan.drafts is not None or self._unsettled[0].step.wait(0.0)):
                self._take_in(self._unsettled.popleft())

    def bind(self, plan: StepPlan, admit: Admit) -> tuple[Bound, Origins] | None:
        """The plan with drafts in it, and where its rows' drafts are from; None if it may go as it is."""
        if plan.drafts is None:
            return None
        decodes = plan.num_decode_rows
        slots, most = np.ascontiguousarray(plan.slots[:decodes]), np.ascontiguousarray(plan.drafts[:decodes])
        with self._lock:
            drafts, sources = self._draft(slots, most, plan)
        drafts, own = admit(slots, most, drafts)
        starts = plan.starts.copy()
        starts[:decodes] = self._next[slots]
        assert (starts <= plan.starts).all(), "a row stands further than it can"
        drafted = np.zeros(plan.slots.size, np.int32)
        drafted[:decodes] = drafts.counts
        order = np.arange(plan.slots.size)
        order[:decodes] = np.argsort(drafts.counts > 0, kind="stable")
        origins = Origins(np.zeros(plan.slots.size, np.int32), np.zeros(plan.slots.size, np.int32))
        origins.sources[:decodes], origins.counts[:decodes] = sources, own
        lens = (plan.lens - plan.drafts + drafted)[order]
        bound = replace(
            plan,
            slots=plan.slots[order],
            starts=starts[order],
            lens=lens,
            sample=plan.sample[order],
            num_decode_rows=int(np.count_nonzero(drafts.counts == 0)),
            num_tokens=int(lens.sum()),
            drafts=None,
        )
        return Bound(bound, order, Drafts(drafted, drafts.tokens).take(order)), origins.take(order)

    def enqueued(self, plan: StepPlan, step: EnqueuedStep, origins: Origins | None) -> None:
        """The step of `plan`, bound if it was to be, is on its way; `origins` is what `bind` gave."""
        rows = np.flatnonzero(plan.sample)
        if not rows.size:
            return
        slots = plan.slots[rows]
        if step.bound is not None and origins is not None:
            drafts, origins = step.bound.drafts.take(rows), origins.take(rows)
        else:
            none = np.zeros(rows.size, np.int32)
            drafts, origins = Drafts(none, none[:0]), Origins(none, none)
        alone = (plan.lens == 1 + (step.bound.drafts.counts if step.bound is not None else 0)).all()
        of_plan = rows if step.bound is None else step.bound.order[rows]
        predicting = np.flatnonzero(self._predicting[slots])
        if predicting.size:
            step.predicted = partial(self._predicted, step, slots[predicting], of_plan[predicting])
        self._unsettled.append(
            Unsettled(
                step,
                plan.num_tokens if alone else 0,
                slots,
                (plan.starts + plan.lens)[rows] - drafts.counts,
                drafts,
                origins,
                self._generation[slots],
            )
        )

    # ---------------------------------------------------------------------------------------------------------- inside

    def _predicted(self, step: EnqueuedStep, slots: Int32, rows: Rows) -> list[RowPredicted]:
        """How the predictions of `slots` fared up to this step, whose tokens are there."""
        with self._lock:
            while any(unsettled.step is step for unsettled in self._unsettled):
                self._take_in(self._unsettled.popleft())
            live = (self._generation[slots] % 2).astype(np.bool_)
            accepted, rejected = self._drafter.predicted(np.ascontiguousarray(slots[live]))
        counts = zip(rows[live].tolist(), accepted.tolist(), rejected.tolist(), strict=True)
        return [RowPredicted(row, *of_row) for row, *of_row in counts]

    def _draft(self, slots: Int32, most: Int32, plan: StepPlan) -> tuple[Drafts, Int32]:
        """What the drafter proposes, as far as it is worth it."""
        drafts = Drafts(*self._drafter.propose(slots, most))
        if self._lengths is None:
            return drafts, np.zeros(slots.size, np.int32)
        sources = self._drafter.sources()
        if drafts.tokens.size:
            others = int(plan.lens[plan.num_decode_rows :].sum())
            seconds = self._cost.seconds if self._cost.is_known else lambda num_tokens: 1.0
            worth = self._lengths.choose(slots, drafts.counts, seconds, sources=sources, other_tokens=others)
            drafts = drafts.cut(worth)
        return drafts, sources

    def _take_in(self, done: Unsettled) -> None:
        drawn = done.step.drawn()
        accepted = num_right(drawn, done.drafts)
        tokens = Drafts(accepted + np.int32(1), drawn[kept(done.drafts.counts, accepted)])
        self._cost.observe(done.num_tokens, done.step.device_seconds())
        live: Bool = self._generation[done.slots] == done.generations
        live &= (done.generations % 2).astype(np.bool_)
        rows = np.flatnonzero(live)
        if not rows.size:
            return
        slots, origins = done.slots[rows], done.origins.take(rows)
        tokens = tokens.take(rows) if rows.size < live.size else tokens
        self._next[slots] = done.positions[rows] + tokens.counts - np.int32(1)
        self._drafter.extend(slots, tokens.counts, tokens.tokens, origins.counts)
        if self._lengths is not None:
            accepted = np.minimum(accepted[rows], origins.counts)
            self._lengths.observe(slots, origins.counts, accepted, origins.sources)
