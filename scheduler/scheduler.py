"""What runs next: `Scheduler.add / abort / plan / commit`, slots, ragged batches, admission and preemption."""

from __future__ import annotations

from collections import deque

import numpy as np

from .arrays import Bool, Int32
from .counters import Counters
from .decode_rows import DecodePlanner, DecodeRows
from .kv_cache import KVCache
from .kv_events import KVEventLog, KVEventPublisher
from .limits import QueueFull, RequestTooLong, SchedulerConfig, refuse_what_never_fits
from .messages import EngineLoad, FinishReason
from .outcome import StepOutcome, first_scores, undelivered_scores
from .plan import RowLogprobs, StepPlan, StepResult, check_counts
from .prefill_budget import StallFree
from .prefill_rows import PrefillPlanner, PrefillRows
from .requests import Request, State
from .slots import Phase, SlotTable
from .stages import Stages
from .step_bounds import StepBounds
from .waiting import WaitingQueue

__all__ = ["QueueFull", "RequestTooLong", "Scheduler", "SchedulerConfig", "StepOutcome"]

MAX_FAILURES = 3
_MAX_RESTING_SLOTS = 64


class Scheduler:
    """Decides every step and takes in what it produced. Not thread-safe; never blocks, never reads a clock.

    Several plans may be made before the first is committed; commits come in the order of plans. `num_slots` is how
    many slots the device's arrays need: a few more than may run, because a slot whose request ended rests until the
    steps that still name it were committed.
    """

    def __init__(self, config: SchedulerConfig, events: KVEventPublisher | None = None) -> None:
        self.config = config
        self.num_slots = config.max_num_seqs + min(config.max_num_seqs, _MAX_RESTING_SLOTS)
        self._log = KVEventLog(config.groups, config.page_size, events) if events is not None else None
        self._slots = SlotTable(self.num_slots, config.max_model_len)
        self._kv = KVCache(
            config.groups,
            num_slots=self.num_slots,
            max_model_len=config.max_model_len,
            page_size=config.page_size,
            enable_prefix_caching=config.enable_prefix_caching,
            log=self._log,
        )
        self._waiting = WaitingQueue()
        self._in_flight: deque[StepPlan] = deque()
        self._next_step = 0
        self._next_sequence = 0
        self._counters = Counters()
        self._stall_free = StallFree(config.target_itl_ms / 1000)
        self._stages = Stages(config.num_stages, self.num_slots) if config.num_stages > 1 else None
        self._decodes = DecodePlanner(
            self._slots,
            self._kv,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_draft_tokens=config.max_draft_tokens,
            stages=self._stages,
        )
        self._bounds = StepBounds(config.max_num_batched_tokens, config.max_num_seqs)
        self._prefills = PrefillPlanner(
            config, self._slots, self._kv, self._waiting, self._counters, self._bounds
        )

    # ---------------------------------------------------------------------------------------------------- requests

    def add(self, request: Request) -> None:
        """Queue a request, if `vet` has nothing against it."""
        self.vet(request)
        self.enqueue(request)

    def vet(self, request: Request, num_held: int = 0) -> None:
        """May it be queued? `num_held` requests that were vetted wait elsewhere for what they need.

        Raises:
            RequestTooLong: it breaks `max_model_len`, or even alone it would not fit the page pools.
            QueueFull: `max_num_queued_reqs` requests wait already.
        """
        refuse_what_never_fits(request, self.config, self._kv)
        bound, waiting = self.config.max_num_queued_reqs, self._waiting.num_new + num_held
        if bound is not None and waiting >= bound:
            raise QueueFull(waiting, bound)

    def enqueue(self, request: Request) -> None:
        """Queue a request that was vetted; its arrival gives it its place."""
        request.sequence = self._next_sequence
        self._next_sequence += 1
        request.move(State.WAITING)
        self._waiting.push(request)

    def abort(self, request: Request) -> None:
        """Stop a request; what is in flight for it is dropped at commit. Its full pages stay cached."""
        if request.state is State.RUNNING:
            self._vacate(request)
        elif request.state is not State.FINISHED:
            self._waiting.remove(request)
        if request.state is not State.FINISHED:
            self._finish(request, "abort")
        if self._log is not None and not self._in_flight:
            self._log.committed(self._next_step - 1)

    def has_work(self) -> bool:
        """Whether anything waits, runs or is in flight."""
        return bool(len(self._waiting) or self._slots.num_live or self._in_flight)

    # -------------------------------------------------------------------------------------------------------- plan

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can run before a commit or an `add`.

        Decodes first; then prefills that have begun, in order of rank; then new requests as the policy picks them.
        Beside decodes, prefill gets as much as the target of the step's time leaves.
        """
        preempted_before = self._counters.num_preemptions
        decodes = self._decodes.plan(lambda: self._preempt(self._last_in_rank()))
        prefills = PrefillRows()
        if self._prefills.slots or len(self._waiting):
            budget = self._stall_free.budget(self.config.max_num_batched_tokens, decodes)
            budget.tokens = min(budget.tokens, self._bounds.prefill_tokens)
            may_admit = self._counters.num_preemptions == preempted_before
            prefills = self._prefills.plan(budget, now, may_admit=may_admit)
            if prefills.inits:
                self._decodes.expect_drafts()
        if not decodes.slots.size and not prefills.chunks:
            if self._in_flight or not self._slots.num_live:
                return None
            # All that run are prefills without pages: the last gives way to the first.
            assert self._slots.num_live > 1, "a request that fits the pools found no page"
            self._preempt(self._last_in_rank())
            return self.plan(now)

        step = self._assemble(decodes, prefills)
        self._in_flight.append(step)
        return step

    def _assemble(self, decodes: DecodeRows, prefills: PrefillRows) -> StepPlan:
        slots, starts, chunks = decodes.slots, decodes.starts, prefills.chunks
        num_decodes = slots.size
        lens: Int32 = np.ones(num_decodes + len(chunks), np.int32)
        sample: Bool = np.ones(num_decodes + len(chunks), np.bool_)
        drafts: Int32 | None = None
        if decodes.drafts is not None:
            drafts = np.zeros(lens.size, np.int32)
            drafts[:num_decodes] = decodes.drafts
            lens += drafts
        if chunks:
            table = np.array(chunks, np.int32)
            slots = np.concatenate([slots, table[:, 0]])
            starts = np.concatenate([starts, table[:, 1]])
            lens[num_decodes:] = table[:, 2]
            ends, chunked = table[:, 1] + table[:, 2], table[:, 0]
            known = self._slots.known[chunked]
            sample[num_decodes:] = (ends == known) & (known < self._slots.limit[chunked])
        step = self._next_step
        self._next_step += 1
        if self._log is not None:
            self._log.planned(step)
        plan = StepPlan(
            step=step,
            slots=slots,
            starts=starts,
            lens=lens,
            sample=sample,
            num_decode_rows=num_decodes,
            num_tokens=int(lens.sum()),
            inits=prefills.inits,
            pages=self._kv.updates(),
            drafts=drafts,
            left=self._slots.left(),
        )
        plan.expected_seconds = self._stall_free.expect(plan)
        if self._stages is not None:
            self._stages.planned(plan)
            plan.decode_tokens = self._slots.tokens[slots[:num_decodes], starts[:num_decodes]]
        return plan

    # ------------------------------------------------------------------------------------------------------ commit

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> StepOutcome:
        """Take in what the oldest plan in flight produced. Rows of requests that ended meanwhile are dropped."""
        assert self._in_flight, "no step is in flight"
        assert self._in_flight[0] is plan, "steps are committed in the order they were planned"
        check_counts(plan, result)
        state = self._slots
        self._stall_free.observe(plan, result)
        if self._stages is not None:
            self._stages.committed(plan)
        if 0 < plan.num_decode_rows < plan.slots.size:
            self._counters.mixed_step(plan, result, self._stall_free.target_s)
        live: Bool = state.phase[plan.slots] != Phase.FREE
        if plan.drafts is not None:
            self._settle(plan, result, live)
        drawn = live & (result.counts > 0)
        slots, counts, tokens = plan.slots, result.counts, result.tokens
        if not drawn.all():
            tokens = tokens[np.repeat(drawn, counts)]
            slots, counts = slots[drawn], counts[drawn]
        new = state.append(slots, counts, tokens)
        self._counters.generation_tokens += new.tokens.size
        outcome = StepOutcome(
            frontend_ids=state.frontend_ids[slots],
            request_ids=state.request_ids[slots],
            counts=new.kept.astype(np.uint16),
            tokens=new.tokens,
        )
        if result.drafted is not None and result.drafted.any():
            outcome.drafted = result.drafted[drawn].astype(np.uint16)
            outcome.accepted = result.accepted()[drawn].astype(np.uint16)
        for entry in result.logprobs:
            if live[entry.row]:
                request = self._slots.request_in(int(plan.slots[entry.row]))
                scores: RowLogprobs | None = entry
                if entry.is_prompt:
                    scores = undelivered_scores(request, int(plan.starts[entry.row]), entry)
                elif new.tokens.size < tokens.size:
                    row = int(np.count_nonzero(drawn[: entry.row]))
                    scores = first_scores(entry, int(new.kept[row]))
                if scores is not None:
                    outcome.logprobs.append((request, scores))
        for pooled in result.pooled:
            if live[pooled.row]:
                outcome.pooled.append((self._slots.request_in(int(plan.slots[pooled.row])), pooled))
        for predicted in result.predicted:
            if live[predicted.row]:
                request = self._slots.request_in(int(plan.slots[predicted.row]))
                request.predicted_here = (predicted.accepted, predicted.rejected)
                outcome.predicted.append(request)
        self._in_flight.popleft()
        self._bounds.committed()
        self._finish_prefills(plan, live, now, outcome)
        for row in np.flatnonzero(new.ends).tolist():
            reason: FinishReason = (
                "stop" if new.stopped[row] else "repetition" if new.repeats[row] else "length"
            )
            self._end(self._slots.request_in(int(slots[row])), reason, outcome)
        for plan_row, reason in result.ended:
            ended = state.requests[plan.slots[plan_row]]
            if live[plan_row] and ended is not None:
                self._end(ended, reason, outcome)
        state.wake(plan.step)
        if self._log is not None:
            self._log.committed(plan.step)
        return outcome

    def _settle(self, plan: StepPlan, result: StepResult, live: Bool) -> None:
        """Take in how many drafts of this step were right."""
        assert plan.drafts is not None
        assert result.drafted is not None
        decodes = plan.num_decode_rows
        num_drafted = int(result.drafted.sum())
        slots, granted, counts = plan.slots[:decodes], plan.drafts[:decodes], result.counts[:decodes]
        going_on = live[:decodes] & (counts > 0)
        if not going_on.all():
            slots, granted, counts = slots[going_on], granted[going_on], counts[going_on]
        self._slots.settle(slots, granted, counts)
        self._counters.looked_for_drafts(plan, result)
        if num_drafted:
            rows = live[:decodes]
            self._counters.verified(result.drafted[:decodes][rows], result.accepted()[:decodes][rows])
        if granted.any():
            self._decodes.drafted(num_drafted)

    def _end(self, request: Request, reason: FinishReason, outcome: StepOutcome) -> None:
        """Finish a running request at a commit."""
        self._vacate(request)
        self._finish(request, reason)
        outcome.finished.append(request)

    def _finish_prefills(self, plan: StepPlan, live: Bool, now: float, outcome: StepOutcome) -> None:
        """First tokens, and the end of requests that wanted no token at all."""
        for row in range(plan.num_decode_rows, plan.slots.size):
            if not live[row]:
                continue
            slot = int(plan.slots[row])
            request = self._slots.request_in(slot)
            ends = not plan.sample[row] and plan.starts[row] + plan.lens[row] == self._slots.known[slot]
            if (plan.sample[row] or ends) and request.first_token_at is None:
                assert request.admitted_at is not None
                request.first_token_at = now
                outcome.first.append(
                    (request, request.admitted_at - request.arrival, now - request.admitted_at)
                )
            if ends:
                self._end(request, "stop" if request.pooling is not None else "length", outcome)

    # ------------------------------------------------------------------------------------------------ giving slots up

    def _last_in_rank(self) -> Request:
        """The running request that gives way first: lowest priority, then youngest."""
        return max(
            (request for slot, request in self._slots.running() if self._slots.phase[slot] != Phase.DRAIN),
            key=lambda request: request.rank,
        )

    def _preempt(self, request: Request, keep_pages: bool = True) -> None:
        """Requeue a running request; its full pages stay cached, a token in flight for it is drawn again later."""
        self._vacate(request, keep_pages)
        request.num_preemptions += 1
        request.predicted_before, request.predicted_here = request.predicted, (0, 0)
        self._counters.num_preemptions += 1
        request.move(State.PREEMPTED)
        self._waiting.push(request)

    def _vacate(self, request: Request, keep_pages: bool = True) -> None:
        """Take slot and pages from a running request and bring its tokens up to date."""
        slot, state = request.slot, self._slots
        known, computed = int(state.known[slot]), int(state.computed[slot])
        if known > len(request.tokens):
            request.tokens = state.tokens[slot, :known].copy()
        self._kv.release(request, slot, min(known, computed) if keep_pages else 0)
        if state.phase[slot] == Phase.PREFILL:
            self._prefills.slots.remove(slot)
        state.free(slot, self._in_flight[-1].step if self._in_flight else None)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.move(State.FINISHED)
        request.finish_reason = reason
        request.node = None
        request.data = b""

    # ------------------------------------------------------------------------------------------------ administration

    def flush_cache(self) -> int:
        """Drop every cached page nobody holds; returns how many."""
        dropped = self._kv.tree.clear()
        if self._log is not None:
            self._log.flush(cleared=not self._kv.tree.roots)
        return dropped

    def fail(self, plan: StepPlan, *, out_of_memory: bool = False) -> list[Request]:
        """A step in flight raised: what any page holds is unknown now.

        All steps in flight are void and must not be committed, the cache is emptied, and every running request is
        queued again with the tokens committed so far. One that `MAX_FAILURES` failed steps named may be what breaks
        them: it is finished with reason `error`. Returns those. A step that ran `out_of_memory` counts as failed only
        if it cannot be smaller; otherwise the steps to come are.
        """
        assert any(step is plan for step in self._in_flight), "the step is not in flight"
        smaller = out_of_memory and self._bounds.shrink(plan, whole_prompts=not self.config.groups)
        for slot in () if smaller else plan.slots.tolist():
            request = self._slots.requests[slot]
            if request is not None:
                request.num_failures += 1
        self._in_flight.clear()
        failed = []
        for _, request in list(self._slots.running()):
            if request.num_failures < MAX_FAILURES:
                self._preempt(request, keep_pages=False)
            else:
                self._vacate(request, keep_pages=False)
                self._finish(request, "error")
                failed.append(request)
        self._slots.wake_all()
        if self._stages is not None:
            self._stages.failed()
        self._kv.updates()
        self.flush_cache()
        return failed

    def load(self) -> EngineLoad:
        """Gauges and counters this scheduler knows. With several KV groups, pages are summed over them and
        `kv_usage` is that of the fullest."""
        pools = self._kv.pools
        waiting = self._waiting.num_tokens
        return self._counters.fill(
            EngineLoad(
                num_running=self._slots.num_live,
                num_waiting=len(self._waiting),
                kv_usage=max((pool.num_held / pool.num_pages for pool in pools), default=0.0),
                held_pages=sum(pool.num_held for pool in pools),
                cached_pages=sum(pool.num_cached for pool in pools),
                free_pages=sum(pool.num_free for pool in pools),
                in_flight_tokens=waiting + int(self._slots.known[self._slots.phase != Phase.FREE].sum()),
                waiting_tokens=waiting,
                evicted_pages=self._kv.tree.num_evicted,
            )
        )

    def check(self) -> None:
        """Prove that slots and pages are conserved and every count matches its holders; raises AssertionError."""
        self._slots.check()
        running = dict(self._slots.running())
        assert len(running) == self._slots.num_live <= self.config.max_num_seqs
        assert set(self._prefills.slots) == set(np.flatnonzero(self._slots.phase == Phase.PREFILL).tolist())
        for request in running.values():
            assert request.state is State.RUNNING
        for request in self._waiting:
            assert request.state in (State.WAITING, State.PREEMPTED)
        self._kv.check(running)
        for slot in running:
            assert 0 <= self._slots.doubt[slot] <= self._slots.computed[slot] <= self._kv.reach[slot]
