"""Speculation: gives plans the drafts they have room for, and follows what became of them.

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
import torch

from ..scheduler.arrays import Bool, Int32, Rows
from ..scheduler.plan import RowPredicted, StepPlan
from ..spec.adaptive import DraftLengths
from ..spec.interface import HostDrafter
from ..spec.step_cost import StepCost
from ..spec.verify import Drafts, kept, num_right
from .bound import Bound
from .draft_models.interface import DeviceDrafter
from .enqueued import EnqueuedStep

MOST_UNSETTLED = 16  # steps; more are taken in even if nobody needs them
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


@dataclass(slots=True)
class Binding:
    """A plan whose rows stand where they do. Where anything was drafted, `plan` is that of `bound`."""

    plan: StepPlan
    bound: Bound | None = None
    origins: Origins | None = None  # of the drafts, rows as in `plan`
    seconds: float = 0.0  # in which drafts were looked for
    device_seconds: float = 0.0  # of the step's, that a drafter on the device took


@dataclass(slots=True)
class Unsettled:
    """A step whose tokens may not be there yet: its rows that draw, and what of them belongs to which request."""

    step: EnqueuedStep
    num_tokens: int  # of the step; 0 where its time teaches nothing
    slots: Int32  # (n,)
    positions: Int32  # (n,) of the first token that each draws
    drafts: Drafts | None  # None: each draws one token
    origins: Origins | None  # of the drafts
    generations: Int32  # (n,) of the slots
    draft_seconds: float = 0.0  # of the device, within the step's


class Speculation:
    """Called by the device's thread, as the runner is; `predicted` by whoever collects a step's results."""

    def __init__(
        self,
        num_slots: int,
        drafter: HostDrafter | DeviceDrafter,
        *,
        max_draft_tokens: int,
        adaptive: bool = True,
    ) -> None:
        """Without `adaptive` all is drafted that can be, and verified."""
        self._drafter = drafter
        self._lengths = DraftLengths(num_slots, max_draft_tokens, drafter.num_sources) if adaptive else None
        self._cost = StepCost()
        self._next: Int32 = np.zeros(num_slots, np.int32)  # position of a decoding slot's newest token
        self._generation: Int32 = np.zeros(num_slots, np.int32)  # odd while a request is there
        self._predicting: Bool = np.zeros(num_slots, np.bool_)  # has a prediction
        self._num_predicting = 0
        self._zeros: Int32 = np.zeros(num_slots, np.int32)
        self._ones: Int32 = np.ones(num_slots, np.int32)
        self._steps = 0  # since lengths of a model's drafts were chosen
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
            self._predicting[slot] = prediction is not None and prediction.size > 0
            self._num_predicting += int(self._predicting[slot])
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
                self._num_predicting -= int(self._predicting[slot])
                self._drafter.stop(slot)

    # ------------------------------------------------------------------------------------------------------ each step

    def settle(self, plan: StepPlan) -> None:
        """Take in earlier steps, before `plan` is enqueued: all of them, waited for, if it cannot do without; otherwise
        those whose tokens are there, once they are many."""
        if plan.drafts is None and len(self._unsettled) < MOST_UNSETTLED:
            return
        with self._lock:
            ready = 0
            for unsettled in self._unsettled:
                if plan.drafts is None and not unsettled.step.wait(0.0):
                    break
                ready += 1
            self._take_in_first(ready)

    def keep_up(self, plan: StepPlan) -> None:
        """Before the pages of `plan` are handed out: a drafter on the device does what it put off."""
        if isinstance(self._drafter, DeviceDrafter):
            decodes = plan.num_decode_rows
            slots = plan.slots[:decodes]
            positions = plan.starts[:decodes] if plan.drafts is None else self._next[slots]
            self._steps += 1
            with self._lock:
                self._drafter.keep_up(slots, positions, plan.lens[:decodes])

    def bind(self, plan: StepPlan, admit: Admit) -> Binding:
        """The plan as it may be enqueued, with its drafts."""
        if plan.drafts is None:
            return Binding(plan)
        decodes = plan.num_decode_rows
        slots, most = plan.slots[:decodes], plan.drafts[:decodes]
        with self._lock:
            drafts, sources = self._draft(slots, most, plan)
        drafts, own = admit(slots, most, drafts)
        starts = plan.starts.copy()
        starts[:decodes] = self._next[slots]
        assert (starts <= plan.starts).all(), "a row stands further than it can"
        lens = plan.lens - plan.drafts
        seconds = self._drafter.seconds if isinstance(self._drafter, DeviceDrafter) else 0.0
        if not drafts.tokens.size:
            plan = replace(plan, starts=starts, lens=lens, num_tokens=int(lens.sum()), drafts=None)
            return Binding(plan, device_seconds=seconds)
        drafted = np.zeros(plan.slots.size, np.int32)
        drafted[:decodes] = drafts.counts
        order = np.arange(plan.slots.size)
        order[:decodes] = np.argsort(drafts.counts > 0, kind="stable")
        origins = Origins(np.zeros(plan.slots.size, np.int32), np.zeros(plan.slots.size, np.int32))
        origins.sources[:decodes], origins.counts[:decodes] = sources, own
        lens = (lens + drafted)[order]
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
        of_rows = Drafts(drafted, drafts.tokens).take(order)
        return Binding(bound, Bound(bound, order, of_rows), origins.take(order), device_seconds=seconds)

    def enqueued(self, binding: Binding, step: EnqueuedStep) -> None:
        """The step of a plan that was bound is on its way."""
        plan, bound = binding.plan, binding.bound
        slots, rows, draft_seconds = plan.slots, None, binding.device_seconds
        alone = plan.num_decode_rows == slots.size
        if alone and not self._num_predicting:
            generations = self._generation[slots]
            self._unsettled.append(
                Unsettled(
                    step, plan.num_tokens, slots, plan.starts + 1, None, None, generations, draft_seconds
                )
            )
            return
        positions = plan.starts + plan.lens
        drafts, origins = None, binding.origins
        if not alone:
            rows = np.flatnonzero(plan.sample)
            slots, positions = slots[rows], positions[rows]
        if bound is not None and origins is not None:
            assert rows is not None
            alone = bool((plan.lens == bound.drafts.counts + 1).all())
            drafts, origins = bound.drafts.take(rows), origins.take(rows)
            positions = positions - drafts.counts
        if not slots.size:
            return
        if self._num_predicting:
            predicting = np.flatnonzero(self._predicting[slots])
            if predicting.size:
                of_plan = np.arange(plan.slots.size) if rows is None else rows
                of_plan = of_plan if bound is None else bound.order[of_plan]
                step.predicted = partial(self._predicted, step, slots[predicting], of_plan[predicting])
        num_tokens = plan.num_tokens if alone else 0
        self._unsettled.append(
            Unsettled(
                step, num_tokens, slots, positions, drafts, origins, self._generation[slots], draft_seconds
            )
        )

    @property
    def is_on_device(self) -> bool:
        """Whether `bind` writes to pages."""
        return isinstance(self._drafter, DeviceDrafter)

    @property
    def reads_last(self) -> bool:
        """Whether the target's final states are wanted for every token of a prompt."""
        return isinstance(self._drafter, DeviceDrafter) and self._drafter.reads_last

    def computed(self, plan: StepPlan, num_decodes: int, hidden: torch.Tensor) -> None:
        """The forward pass of `plan`, bound if it was to be, gave `hidden`; its first `num_decodes` rows decode."""
        if isinstance(self._drafter, DeviceDrafter):
            self._drafter.computed(plan, num_decodes, hidden)

    # ---------------------------------------------------------------------------------------------------------- inside

    def _predicted(self, step: EnqueuedStep, slots: Int32, rows: Rows) -> list[RowPredicted]:
        """How the predictions of `slots` fared up to this step, whose tokens are there."""
        with self._lock:
            steps = [unsettled.step for unsettled in self._unsettled]
            self._take_in_first(steps.index(step) + 1 if step in steps else 0)
            live = (self._generation[slots] % 2).astype(np.bool_)
            accepted, rejected = self._drafter.predicted(np.ascontiguousarray(slots[live]))
        counts = zip(rows[live].tolist(), accepted.tolist(), rejected.tolist(), strict=True)
        return [RowPredicted(row, *of_row) for row, *of_row in counts]

    def _draft(self, slots: Int32, most: Int32, plan: StepPlan) -> tuple[Drafts, Int32]:
        """What the drafter proposes, as far as it is worth it."""
        if isinstance(self._drafter, DeviceDrafter):
            seconds = self._drafter.pass_seconds(slots.size)
            lens = self._worth(slots, most, plan, pass_seconds=seconds, steps=self._steps)
            self._steps = 0
            return self._drafter.draft(slots, self._next[slots], lens), np.zeros(slots.size, np.int32)
        drafts = Drafts(*self._drafter.propose(slots, most))
        if self._lengths is None:
            return drafts, np.zeros(slots.size, np.int32)
        sources = self._drafter.sources()
        if drafts.tokens.size:
            drafts = drafts.cut(self._worth(slots, drafts.counts, plan, sources))
        return drafts, sources

    def _worth(
        self,
        slots: Int32,
        limits: Int32,
        plan: StepPlan,
        sources: Int32 | None = None,
        pass_seconds: float = 0.0,
        steps: int = 1,
    ) -> Int32:
        """(n,) how many tokens of at most `limits` (n,) to verify for each row. This was asked `steps` ago."""
        if self._lengths is None:
            return limits
        others = int(plan.lens[plan.num_decode_rows :].sum())
        seconds = self._cost.seconds if self._cost.is_known else lambda num_tokens: 1.0
        return self._lengths.choose(
            slots,
            limits,
            seconds,
            sources=sources,
            other_tokens=others,
            pass_seconds=pass_seconds,
            steps=steps,
        )

    def _take_in_first(self, count: int) -> None:
        """Take in the first `count` steps, several at once where the same rows drew a token each."""
        while count:
            steps = [self._unsettled.popleft()]
            count -= 1
            while count and steps[0].drafts is None and self._unsettled[0].drafts is None:
                if self._unsettled[0].slots is not steps[0].slots:
                    break
                steps.append(self._unsettled.popleft())
                count -= 1
            self._take_in(steps)

    def _take_in(self, steps: list[Unsettled]) -> None:
        """All but the last of `steps` draw a token for each of the same slots, as the last does if there are others."""
        done = steps[-1]
        for step in steps:
            if step.num_tokens:
                self._cost.observe(step.num_tokens, step.step.device_seconds() - step.draft_seconds)
        slots, positions, origins = done.slots, done.positions, done.origins
        drawn, counts = done.step.drawn(), self._ones[: slots.size]
        if len(steps) > 1:
            drawn = np.stack([step.step.drawn() for step in steps], axis=1).ravel()
            counts = np.full(slots.size, len(steps), np.int32)
        accepted: Int32 | None = None
        if done.drafts is not None:
            accepted = num_right(drawn, done.drafts)
            counts, drawn = accepted + np.int32(1), drawn[kept(done.drafts.counts, accepted)]
        live: Bool = self._generation[slots] == done.generations
        if not live.all():
            rows = np.flatnonzero(live)
            tokens = Drafts(counts, drawn).take(rows)
            slots, positions, counts, drawn = slots[rows], positions[rows], tokens.counts, tokens.tokens
            origins = None if origins is None else origins.take(rows)
            accepted = None if accepted is None else accepted[rows]
            if not rows.size:
                return
        self._next[slots] = positions if accepted is None else positions + accepted
        verified = self._zeros[: slots.size] if origins is None else origins.counts
        self._drafter.extend(slots, counts, drawn, verified)
        if self._lengths is not None and accepted is not None and origins is not None:
            right = np.minimum(accepted, origins.counts)
            self._lengths.observe(slots, origins.counts, right, origins.sources)
