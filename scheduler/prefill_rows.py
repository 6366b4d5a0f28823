"""Which prompts are computed in the next step, and how much of them: those that have begun, then who is admitted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .counters import Counters
from .kv_cache import Hit, KVCache
from .limits import SchedulerConfig
from .plan import SlotInit
from .policies import POLICIES
from .prefill_budget import PrefillBudget
from .requests import Request, State
from .slots import Phase, SlotTable
from .step_bounds import StepBounds
from .waiting import WaitingQueue


@dataclass(slots=True)
class PrefillRows:
    """Rows of a step that compute a prompt, or a part of one: (slot, start, length). `inits` are who is new."""

    chunks: list[tuple[int, int, int]] = field(default_factory=list)
    inits: list[SlotInit] = field(default_factory=list)


class PrefillPlanner:
    """Plans the prefill of a step, with its pages taken and slots moved on. `slots` are those in phase PREFILL, in order
    of rank."""

    def __init__(
        self,
        config: SchedulerConfig,
        slots: SlotTable,
        kv: KVCache,
        waiting: WaitingQueue,
        counters: Counters,
        bounds: StepBounds,
    ) -> None:
        self._config = config
        self._table = slots
        self._kv = kv
        self._waiting = waiting
        self._pick = POLICIES[config.policy]
        self._counters = counters
        self._bounds = bounds
        self.slots: list[int] = []

    def plan(self, budget: PrefillBudget, now: float, *, may_admit: bool) -> PrefillRows:
        """What of the prompts that have begun fits the budget, and if anybody `may_admit`, of new ones."""
        rows = PrefillRows()
        for slot in list(self.slots):
            if budget.spent:
                break
            self._plan_chunk(slot, rows, budget)
        if may_admit:
            self._plan_admissions(rows, budget, now)
        return rows

    def _plan_chunk(self, slot: int, rows: PrefillRows, budget: PrefillBudget) -> int:
        """Plan as much of the slot's prefill as budget and pages allow; returns the tokens planned."""
        state, kv, page_size = self._table, self._kv, self._config.page_size
        start, known = int(state.computed[slot]), int(state.known[slot])
        if kv.sliding:
            kv.give_back(np.array([slot], np.int32), np.array([start], np.int32))
        room = (kv.pages_for(start) + kv.available()) * page_size - start
        length = min(budget.chunk(start, known - start), room)
        if length <= 0:
            return 0
        budget.take(start, length)
        end = start + length
        kv.grow(slot, end)
        state.computed[slot] = end
        request = state.request_in(slot)
        kv.cache(request, slot, end)
        rows.chunks.append((slot, start, length))
        if end == known:
            self.slots.remove(slot)
            request.data = b""
            state.move(slot, Phase.DECODE if known <= state.limit[slot] - 2 else Phase.DRAIN)
        return length

    def _plan_admissions(self, rows: PrefillRows, budget: PrefillBudget, now: float) -> None:
        """Admit waiting requests while budget, slots and pages last."""
        while (
            not budget.spent
            and len(self._waiting)
            and self._table.num_live < self._bounds.num_seqs
            and self._table.num_free
        ):
            request = self._pick(self._waiting, self._cached_tokens)
            if not self._config.groups and len(request.tokens) > budget.tokens:
                if rows.chunks:
                    break
                budget.tokens = len(request.tokens)  # more than the device had memory for: alone it may fit
            spare = self._spare_pages()
            if self._kv.surely_short(request, spare):
                break
            hit = self._kv.hit(request)
            if self._kv.shortage(hit, len(request.tokens), self._config.max_num_batched_tokens, spare):
                break
            if not budget.chunk(hit.num_tokens, len(request.tokens) - hit.num_tokens):
                break
            slot = self._admit(request, hit, now)
            rows.inits.append(SlotInit(slot, request))
            planned = self._plan_chunk(slot, rows, budget)
            assert planned > 0, "an admitted request found no page"

    def _cached_tokens(self, request: Request) -> int:
        node = self._kv.match(request)
        return node.depth * self._config.page_size if node is not None else 0

    def _spare_pages(self) -> list[int]:
        """Pages to leave when admitting, per group: what begun prefills still need, and half a page per running
        request, so that the next decodes do not at once preempt what was admitted."""
        spare = []
        for group in range(len(self._config.groups)):
            pages = self._table.num_live // 2
            for slot in self.slots:
                known, computed = int(self._table.known[slot]), int(self._table.computed[slot])
                peak = self._kv.needed(group, known, self._config.max_num_batched_tokens)
                held = self._kv.pages_for(computed) - int(self._kv.firsts[group][slot])
                pages += max(0, peak - held)
            spare.append(pages)
        return spare

    def _admit(self, request: Request, hit: Hit, now: float) -> int:
        self._waiting.admitted(request)
        request.move(State.RUNNING)
        slot = self._table.assign(request, request.token_limit(self._config.max_model_len))
        self._kv.admit(slot, hit)
        self._table.computed[slot] = hit.num_tokens
        request.node = hit.nodes[-1] if hit.nodes else None
        if not request.data:
            request.data = request.tokens.tobytes()
        self.slots.append(slot)
        self.slots.sort(key=lambda each: self._table.request_in(each).rank)
        if request.admitted_at is None:
            request.admitted_at = now
            request.num_cached_tokens = min(hit.num_tokens, request.num_prompt_tokens)
            self._counters.prompt_tokens += request.num_prompt_tokens
            self._counters.cached_prompt_tokens += request.num_cached_tokens
            if self._config.enable_prefix_caching:
                self._counters.prefix_cache_queries += len(request.tokens)
                self._counters.prefix_cache_hits += hit.num_tokens
        return slot
