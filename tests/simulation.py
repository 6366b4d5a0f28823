"""A scheduler and a fake device run together, step by step, with what the scheduler promises checked at every step."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable

import numpy as np
from fake_device import FakeDevice
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent
from penstock.scheduler.messages import SamplingParams
from penstock.scheduler.plan import StepPlan, StepResult
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler, SchedulerConfig, StepOutcome


def make_config(**changes: object) -> SchedulerConfig:
    """A small full-attention configuration with the given fields changed."""
    fields: dict[str, object] = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
        "page_size": 4,
        "groups": (KVGroup("full", 256),),
    }
    return SchedulerConfig(**(fields | changes))  # type: ignore[arg-type]


def make_request(
    request_id: int,
    tokens: list[int] | range,
    *,
    num_prompt_tokens: int | None = None,
    priority: int = 0,
    cache_salt: str = "",
    arrival: float = 0.0,
    **sampling: object,
) -> Request:
    sampling.setdefault("max_tokens", 4)
    return Request(
        key=request_id,
        request_id=request_id,
        frontend_id=request_id % 3,
        tokens=np.array(tokens, np.int32),
        num_prompt_tokens=len(tokens) if num_prompt_tokens is None else num_prompt_tokens,
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
        priority=priority,
        cache_salt=cache_salt,
        arrival=arrival,
    )


class EventMirror:
    """A consumer of KV events: which (group, block hash) are stored, as the events tell it."""

    def __init__(self) -> None:
        self.stored: set[tuple[int, int]] = set()
        self.num_events = 0

    def publish(self, events: list[KVEvent]) -> None:
        assert events, "an empty batch"
        for event in events:
            self.num_events += 1
            match event:
                case BlockStored():
                    blocks = {(event.group_idx, block) for block in event.block_hashes}
                    assert len(blocks) == len(event.block_hashes)
                    assert not blocks & self.stored, "stored twice"
                    assert len(event.token_ids) == len(event.block_hashes) * event.block_size
                    if event.kv_cache_spec_kind == "full_attention" and event.parent_block_hash is not None:
                        assert (event.group_idx, event.parent_block_hash) in self.stored, "an orphan"
                    self.stored |= blocks
                case BlockRemoved():
                    blocks = {(event.group_idx, block) for block in event.block_hashes}
                    assert blocks <= self.stored, "removed what was not stored"
                    self.stored -= blocks
                case AllBlocksCleared():
                    self.stored.clear()


def tree_blocks(scheduler: Scheduler) -> set[tuple[int, int]]:
    """(group, hash) of every page in the radix tree, hashed here from the tree's tokens."""
    found = set()
    for root in scheduler._kv.tree.roots.values():
        stack = [(root, hashlib.sha256(b"penstock-kv-block\0" + root.salt.encode()).digest())]
        while stack:
            node, digest = stack.pop()
            for key, child in node.children.items():
                chained = hashlib.sha256(digest + key).digest()
                stack.append((child, chained))
                block = int.from_bytes(chained[-8:], "big")
                found |= {(group, block) for group, page in enumerate(child.pages) if page >= 0}
    return found


class Simulation:
    """`step` plans, launches and, once `lag` steps are in flight besides, commits; `outputs` gathers the tokens.

    `seconds` is what the device says a plan took.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        lag: int = 0,
        events: bool = False,
        seconds: Callable[[StepPlan], float] = lambda plan: 0.0,
    ) -> None:
        self.mirror = EventMirror() if events else None
        self.scheduler = Scheduler(config, self.mirror)
        self.device = FakeDevice.of(self.scheduler)
        self.lag = lag
        self.seconds = seconds
        self.now = 0.0
        self.in_flight: deque[tuple[StepPlan, StepResult]] = deque()
        self.plans: list[StepPlan] = []
        self.outputs: dict[int, list[int]] = defaultdict(list)
        self.scores: dict[int, list[tuple[int, float]]] = defaultdict(
            list
        )  # prompt tokens and log probabilities
        self.finished: list[Request] = []
        self.first: list[tuple[Request, float, float]] = []

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)
            self.scheduler.check()

    def abort(self, request: Request) -> None:
        self.scheduler.abort(request)
        self.scheduler.check()

    def plan(self) -> StepPlan | None:
        self.now += 1.0
        plan = self.scheduler.plan(self.now)
        self.scheduler.check()
        if plan is not None:
            self._check_plan(plan)
            self.plans.append(plan)
            result = self.device.run(plan)
            result.device_seconds = self.seconds(plan)
            self.in_flight.append((plan, result))
        return plan

    def commit(self) -> StepOutcome:
        outcome = self.scheduler.commit(*self.in_flight.popleft(), self.now)
        self.scheduler.check()
        begin = 0
        rows = zip(outcome.request_ids.tolist(), outcome.counts.tolist(), strict=True)
        for request_id, count in rows:
            self.outputs[request_id] += outcome.tokens[begin : begin + count].tolist()
            begin += count
        assert begin == len(outcome.tokens)
        assert outcome.frontend_ids.tolist() == [
            request_id % 3 for request_id in outcome.request_ids.tolist()
        ]
        for request, entry in outcome.logprobs:
            if entry.is_prompt:
                pairs = zip(entry.token_ids.tolist(), entry.logprobs.tolist(), strict=True)
                self.scores[request.request_id] += pairs
        self.finished += outcome.finished
        self.first += outcome.first
        if self.mirror is not None and not self.in_flight:
            assert self.mirror.stored == tree_blocks(self.scheduler)
        return outcome

    def step(self) -> None:
        plan = self.plan()
        if self.in_flight and (plan is None or len(self.in_flight) > self.lag):
            self.commit()

    def run(self, max_steps: int = 5000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            if not self.scheduler.has_work():
                return
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")

    def _check_plan(self, plan: StepPlan) -> None:
        config = self.scheduler.config
        assert plan.num_tokens <= config.max_num_batched_tokens
        assert (plan.lens > 0).all()
        table = self.scheduler._slots
        ends = plan.starts + plan.lens
        limits = np.maximum(table.limit[plan.slots], table.known[plan.slots])
        assert (ends + plan.sample <= limits).all(), "a token past the limit is planned"
        self._check_writes(plan)
        self._check_stages(plan)
        if config.policy == "fcfs":
            waiting = [request.rank for request in self.scheduler._waiting]
            for init in plan.inits:
                assert all(init.request.rank < rank for rank in waiting), "admitted out of order"

    def _check_stages(self, plan: StepPlan) -> None:
        """Stages of a pipeline get what they read with the plan: no step in flight may still be about to draw it."""
        if self.scheduler.config.num_stages == 1:
            assert plan.decode_tokens is None
            return
        decodes, starts = plan.slots[: plan.num_decode_rows], plan.starts[: plan.num_decode_rows]
        for other, _ in self.in_flight:
            assert not set(decodes.tolist()) & set(other.slots[other.sample].tolist())
        assert plan.decode_tokens is not None
        np.testing.assert_array_equal(plan.decode_tokens, self.device.tokens[decodes, starts])

    def _check_writes(self, plan: StepPlan) -> None:
        """A written page has no other reader, but those that first map it in this very step."""
        slots, kv = self.scheduler._slots, self.scheduler._kv
        size = self.scheduler.config.page_size
        fresh = {init.slot for init in plan.inits}
        for group, table in enumerate(kv.tables):
            readers = defaultdict(set)
            for slot, _ in slots.running():
                held = table[slot, kv.firsts[group][slot] : int(kv.reach[slot]) // size]
                for page in held.tolist():
                    readers[page].add(slot)
            writers: dict[int, int] = {}
            rows = zip(plan.slots.tolist(), plan.starts.tolist(), plan.lens.tolist(), strict=True)
            for row, (slot, start, length) in enumerate(rows):
                before = int(slots.doubt[slot]) - (int(plan.drafts[row]) if plan.drafts is not None else 0)
                lowest = start - before
                assert lowest // size >= kv.firsts[group][slot], "a page that was given back is written"
                for page in table[slot, lowest // size : (start + length - 1) // size + 1].tolist():
                    assert writers.setdefault(page, slot) == slot, "two rows write one page"
                    assert readers[page] - {slot} <= fresh, "a page that another request reads is written"
