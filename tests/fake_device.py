"""A device that runs plans as the real one does, with a model whose every token depends on all KV that it reads.

Each KV entry is a 64-bit number made from the token, its position and every KV entry that the position sees through
the page table (all earlier ones in a full group, the window in a sliding one); a drawn token is made from the last
entry. So one stale, foreign or overwritten page anywhere changes the output. `run_alone` is the same model without
pages, slots or batches. Where a plan leaves room for drafts, the device makes some up, right ones and wrong ones, and
verifies them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from penstock.scheduler.groups import KVGroup
from penstock.scheduler.messages import SamplingParams
from penstock.scheduler.plan import RowLogprobs, StepPlan, StepResult
from penstock.scheduler.requests import Request
from penstock.scheduler.scheduler import Scheduler

MASK = (1 << 64) - 1
VOCAB = 97


def mix(*values: int) -> int:
    """A 64-bit hash of integers (splitmix64 rounds)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value & MASK)) * 0xBF58476D1CE4E5B9 & MASK
        state ^= state >> 27
        state = state * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


def weights(count: int) -> np.ndarray:
    """An odd 64-bit weight for each position."""
    return np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)


def visible_from(group: KVGroup, position: int) -> int:
    return 0 if group.window is None else max(0, position - group.window + 1)


def draw(state: int, sampling: SamplingParams, num_output: int, vocab: int = VOCAB) -> int:
    """The token after a position whose KV entry is `state`; stop tokens are banned before `min_tokens`."""
    token = mix(state, sampling.seed) % vocab
    while num_output < sampling.min_tokens and token in sampling.stop_token_ids:
        token = (token + 1) % vocab
    return token


def run_alone(
    tokens: list[int],
    num_prompt_tokens: int,
    sampling: SamplingParams,
    max_model_len: int,
    groups: tuple[KVGroup, ...],
    vocab: int = VOCAB,
) -> tuple[list[int], str]:
    """(all output tokens since the prompt, finish reason) of one undisturbed request."""
    known = list(tokens)
    limit = min(num_prompt_tokens + sampling.max_tokens, max_model_len)
    size = max(limit, len(known)) + 1
    odd = weights(size)
    kv = [np.zeros(size, np.uint64) for _ in groups]
    position = 0
    while True:
        seen = []
        for group, entries in zip(groups, kv, strict=True):
            begin = visible_from(group, position)
            seen.append(int((entries[begin:position] * odd[begin:position]).sum()))
        state = mix(known[position], position, *seen)
        for index, entries in enumerate(kv):
            entries[position] = mix(state, index)
        position += 1
        if position < len(known):
            continue
        if len(known) >= limit:
            return known[num_prompt_tokens:], "length"
        token = draw(state, sampling, len(known) - num_prompt_tokens, vocab)
        known.append(token)
        num_output = len(known) - num_prompt_tokens
        if token in sampling.stop_token_ids and num_output > sampling.min_tokens:
            return known[num_prompt_tokens:], "stop"


@dataclass
class FakeDevice:
    """Token buffer, page tables and pages of one device; `run` executes plans in order."""

    groups: tuple[KVGroup, ...]
    page_size: int
    num_slots: int
    max_model_len: int
    vocab: int = VOCAB
    right: float = 0.7  # share of right drafts
    computed_tokens: int = 0
    last_step: int = -1
    requests: dict[int, Request] = field(default_factory=dict)

    def __post_init__(self) -> None:
        max_pages = -(-self.max_model_len // self.page_size)
        random = np.random.default_rng(7)
        self.tokens = np.full((self.num_slots, self.max_model_len + 1), -1, np.int64)
        self.tables = [np.zeros((self.num_slots, max_pages), np.int64) for _ in self.groups]
        self.pages = [
            random.integers(0, 1 << 63, (group.num_pages, self.page_size), np.uint64) for group in self.groups
        ]
        self.odd = weights(self.max_model_len)
        self.params: dict[int, tuple[SamplingParams, int]] = {}

    @classmethod
    def of(cls, scheduler: Scheduler, vocab: int = VOCAB) -> FakeDevice:
        config = scheduler.config
        return cls(config.groups, config.page_size, scheduler.num_slots, config.max_model_len, vocab)

    def run(self, plan: StepPlan) -> StepResult:
        assert plan.step > self.last_step, "plans run in order"
        self.last_step = plan.step
        self._apply(plan)
        bound, drafted = self._bind(plan)
        entries: dict[tuple[int, int], int] = {}
        # Layer by layer every row's KV is written before any row attends: the order of positions has that effect.
        order = [
            (start + offset, row)
            for row, (start, length) in enumerate(
                zip(bound.starts.tolist(), bound.lens.tolist(), strict=True)
            )
            for offset in range(length)
        ]
        for position, row in sorted(order):
            if drafted[row] and position > bound.starts[row]:
                self._draft(int(plan.slots[row]), position, entries[row, position - 1])
            entries[row, position] = self._compute(int(plan.slots[row]), position)
        self.computed_tokens += len(order)
        assert len(order) == plan.num_tokens or plan.drafts is not None
        return self._sample(bound, drafted, entries)

    def _bind(self, plan: StepPlan) -> tuple[StepPlan, np.ndarray]:
        """The plan with the true positions and lengths of its decodes, and how many drafts each row has."""
        drafted = np.zeros(len(plan.slots), np.int32)
        decodes = plan.num_decode_rows
        known = (self.tokens[plan.slots[:decodes]] >= 0).sum(axis=1).astype(np.int32)
        starts, lens = plan.starts.copy(), plan.lens.copy()
        starts[:decodes] = known - 1
        assert (starts <= plan.starts).all()
        if plan.drafts is not None:
            assert (plan.lens[:decodes] == plan.drafts[:decodes] + 1).all()
            assert not plan.drafts[decodes:].any()
            drafted = np.array(
                [mix(plan.step, row) % (most + 1) for row, most in enumerate(plan.drafts.tolist())], np.int32
            )
            lens = lens - plan.drafts + drafted
        return replace(plan, starts=starts, lens=lens), drafted

    def _draw(self, slot: int, position: int, state: int) -> int:
        """The token for `position`; `state` is the entry before it."""
        sampling, num_prompt = self.params[slot]
        return draw(state, sampling, position - num_prompt, self.vocab)

    def _draft(self, slot: int, position: int, state: int) -> None:
        """Write a draft for `position`; `state` is the entry before it, which says what would be right."""
        token = self._draw(slot, position, state)
        wrong = mix(slot, position, self.last_step) % 1000 >= 1000 * self.right
        self.tokens[slot, position] = (token + wrong) % self.vocab

    def _apply(self, plan: StepPlan) -> None:
        for init in plan.inits:
            tokens = init.request.tokens
            self.tokens[init.slot] = -1
            self.tokens[init.slot, : len(tokens)] = tokens
            self.params[init.slot] = (init.request.sampling, init.request.num_prompt_tokens)
        assert len(plan.pages) == len(self.groups)
        for table, update in zip(self.tables, plan.pages, strict=True):
            table[update.slots, update.indexes] = update.pages
        assert len(set(plan.slots.tolist())) == len(plan.slots), "a slot has one row per step"
        if plan.drafts is None:
            assert (plan.lens[: plan.num_decode_rows] == 1).all()

    def _compute(self, slot: int, position: int) -> int:
        token = int(self.tokens[slot, position])
        assert token >= 0, "a token nobody wrote is read"
        seen = []
        for group, table, pages in zip(self.groups, self.tables, self.pages, strict=True):
            positions = np.arange(visible_from(group, position), position)
            read = pages[table[slot, positions // self.page_size], positions % self.page_size]
            seen.append(int((read * self.odd[positions]).sum()))
        state = mix(token, position, *seen)
        for index, (table, pages) in enumerate(zip(self.tables, self.pages, strict=True)):
            pages[table[slot, position // self.page_size], position % self.page_size] = mix(state, index)
        return state

    def _sample(self, plan: StepPlan, drafted: np.ndarray, entries: dict[tuple[int, int], int]) -> StepResult:
        drawn: list[int] = []
        logprobs = []
        counts = np.zeros(len(plan.slots), np.int32)
        for row, slot in enumerate(plan.slots.tolist()):
            sampling, num_prompt = self.params[slot]
            start, end = int(plan.starts[row]), int(plan.starts[row] + plan.lens[row])
            if sampling.prompt_logprobs >= 0 and start < num_prompt - 1:
                positions = range(start + 1, min(end, num_prompt - 1) + 1)
                logprobs.append(
                    self._logprobs(row, True, slot, [(p, entries[row, p - 1]) for p in positions])
                )
            if not plan.sample[row]:
                continue
            first = end - int(drafted[row])
            for position in range(first, end + 1):
                token = self._draw(slot, position, entries[row, position - 1])
                right = self.tokens[slot, position] == token
                self.tokens[slot, position] = token
                drawn.append(token)
                counts[row] += 1
                if not right:
                    break
            last = first + int(counts[row])
            self.tokens[slot, last : end + 1] = -1
            if sampling.logprobs >= 0:
                scored = [(position, entries[row, position - 1]) for position in range(first, last)]
                logprobs.append(self._logprobs(row, False, slot, scored))
        return StepResult(
            counts=counts,
            tokens=np.array(drawn, np.int32),
            logprobs=logprobs,
            drafted=drafted if plan.drafts is not None else None,
        )

    def _logprobs(self, row: int, is_prompt: bool, slot: int, scored: list[tuple[int, int]]) -> RowLogprobs:
        """Entries for (position, KV entry before it) pairs: the log probability is minus a hash below 1000."""
        tokens = np.array([self.tokens[slot, position] for position, _ in scored], np.int32)
        count = len(scored)
        return RowLogprobs(
            row=row,
            is_prompt=is_prompt,
            token_ids=tokens,
            logprobs=np.array([-(state % 1000) for _, state in scored], np.float32),
            ranks=np.ones(count, np.int32),
            top_ids=np.zeros((count, 0), np.int32),
            top_logprobs=np.zeros((count, 0), np.float32),
        )
