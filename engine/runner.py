"""Runs step plans: applies their deltas to the device's slots, forwards the batch, samples, reports.

Everything that a steady decode step needs is on the device already (tokens, page tables, sampling parameters); the
plan brings index arrays only. Steps run one after the other on the device's own thread, so the caller plans the next
one meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from ..kernels.attention.interface import AttentionBackend
from ..kernels.interface import Recorder
from ..scheduler.arrays import Int32
from ..scheduler.messages import PoolingParams, SamplingParams
from ..scheduler.plan import RowLogprobs, RowPooled, StepPlan, StepResult
from ..scheduler.requests import Request
from .batch import BatchBuilder
from .device_thread import DeviceThread, Promise
from .grammar.masks import Masks, MaskThread
from .grammar.matchers import Ended
from .grammar.store import Grammar
from .graphs import GraphedForward
from .host_memory import lazy_zeros
from .layers.decoder import Decoder
from .logprobs import Scores, concatenate, score
from .pooling import Pooler, PoolingSlots
from .prefault import Prefault
from .sampler import Sampler
from .sampling_state import SamplingState

StepHandle: TypeAlias = Promise[StepResult]

SCORED_AT_ONCE = 128  # prompt positions whose logits (float32, whole vocabulary) are held at a time


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A slot's request as it was when the step was launched; the scheduler may change the original meanwhile."""

    slot: int
    tokens: Int32
    num_prompt_tokens: int
    sampling: SamplingParams
    pooling: PoolingParams | None
    grammar: Grammar | None


class ModelRunner:
    """Owns the model, its KV pages, the token buffer (num_slots, max_model_len), page tables and sampling state."""

    def __init__(
        self,
        model: Decoder,
        attention: Sequence[AttentionBackend],  # one per KV group
        kv: list[tuple[torch.Tensor, torch.Tensor]],
        *,
        num_slots: int,
        max_model_len: int,
        page_size: int,
        device: torch.device,
        thread: DeviceThread,
        prefaults: Sequence[Prefault] = (),  # one per KV group, where the pool is host memory
        pooler: Pooler,
        grammars: MaskThread,
        recorder: Recorder | None,  # of forward passes; None = each runs as the model's code does
    ) -> None:
        self.num_slots = num_slots
        self._model = model
        self._forward = GraphedForward(model.forward, recorder, device)
        self._attention = attention
        self._vocab_size = model.config.vocab_size
        self._max_model_len = max_model_len
        self._thread = thread
        self._prefaults = prefaults
        self._token_buffer = slot_array(num_slots, max_model_len, device)
        self._page_tables = [slot_array(num_slots, -(-max_model_len // page_size), device) for _ in attention]
        self._batches = BatchBuilder(self._token_buffer, self._page_tables, kv)
        self._sampling = SamplingState(num_slots, self._vocab_size, device)
        self._kernels = model.ops.sampling
        self._sampler = Sampler(self._sampling, self._kernels)
        self._grammars = grammars
        self._pooler = pooler
        self._pooling = PoolingSlots()

    def launch(self, plan: StepPlan) -> StepHandle:
        """Start a step and return at once; its `result()` waits for it and raises what went wrong in it."""
        new = [
            NewSlot(
                init.slot,
                init.request.tokens,
                init.request.num_prompt_tokens,
                init.request.sampling,
                init.request.pooling,
                grammar_of(init.request),
            )
            for init in plan.inits
        ]
        return self._thread.submit(self._step, plan, new)

    def warm_up(self) -> None:
        """Run a prefill and decodes in slot 0: the first request finds everything touched, chosen and recorded."""
        length = min(64, self._max_model_len - 1)
        for start, count in ((0, length), (length, 1), (length, 1)):
            plan = StepPlan(
                step=-1,
                slots=np.zeros(1, np.int32),
                starts=np.full(1, start, np.int32),
                lens=np.full(1, count, np.int32),
                sample=np.array([start + count < self._max_model_len and self._model.config.head == "lm"]),
                num_decode_rows=int(start > 0),
                num_tokens=count,
            )
            if count:
                self.launch(plan).result()

    def close(self) -> None:
        """Let the running step end, then end the threads."""
        self._thread.close()
        self._grammars.close()
        for prefault in self._prefaults:
            prefault.close()

    # ------------------------------------------------------------------------------------------- on the device thread

    def _step(self, plan: StepPlan, new: list[NewSlot]) -> StepResult:
        begin = time.perf_counter()
        self._apply(plan, new)
        rows = np.flatnonzero(plan.sample)
        masks = self._grammars.begin(plan.slots[rows])
        batch, q_start = self._batches.build(plan)
        for backend, attention_batch in zip(self._attention, batch.attention, strict=True):
            backend.plan(attention_batch)
        batch.wanted = self._wanted(plan, q_start, rows)
        hidden = self._forward(batch)
        logprobs = self._score_prompts(plan, q_start, hidden)
        tokens: Int32 = np.zeros(0, np.int32)
        counts = plan.sample.astype(np.int32)
        ended: list[Ended] = []
        if rows.size:
            sampled, more, ended = self._sample(plan, q_start, hidden, rows, masks)
            logprobs += more
            tokens = sampled.cpu().numpy()
            if masks is not None:
                self._grammars.drawn(masks, tokens)
            if ended:
                counts[[row for row, _ in ended]] = 0
                tokens = tokens[counts[rows] > 0]
        return StepResult(
            counts=counts,
            tokens=tokens,
            logprobs=logprobs,
            pooled=self._pool(plan, q_start, hidden),
            ended=ended,
            device_seconds=time.perf_counter() - begin,
        )

    def _apply(self, plan: StepPlan, new: list[NewSlot]) -> None:
        """Requests and pages that came since the last step."""
        to_device = self._batches.to_device
        for init in new:
            known = torch.from_numpy(init.tokens.copy()).to(self._token_buffer.device)
            self._token_buffer[init.slot, : len(known)] = known
            self._sampling.write(init.slot, init.tokens, init.num_prompt_tokens, init.sampling)
            self._pooling.write(init.slot, len(known), init.pooling)
            self._grammars.start(
                init.slot, init.grammar, init.sampling.stop_token_ids, init.tokens[init.num_prompt_tokens :]
            )
        for table, updates in zip(self._page_tables, plan.pages, strict=False):
            if updates.slots.size:
                places = updates.slots.astype(np.int64) * table.shape[1] + updates.indexes
                table.view(-1).index_copy_(0, to_device(places), to_device(updates.pages))
        for prefault, updates in zip(self._prefaults, plan.pages, strict=False):
            if updates.pages.size:
                prefault.reach(int(updates.pages.max()))

    def _wanted(self, plan: StepPlan, q_start: Int32, rows: np.ndarray) -> torch.Tensor | None:
        """The last tokens of the plan's `rows`; None where all are, or states within a prompt are asked for."""
        if plan.num_decode_rows == len(plan.slots) or self._pooling.ended(plan):
            return None
        if self._sampling.prompt_logprobs[plan.slots].max() >= 0:
            return None
        return self._batches.to_device(q_start[1:][rows].astype(np.int64) - 1)

    def _sample(
        self, plan: StepPlan, q_start: Int32, hidden: torch.Tensor, rows: np.ndarray, masks: Masks | None
    ) -> tuple[torch.Tensor, list[RowLogprobs], list[Ended]]:
        """The next token of the plan's `rows`, written where the next step reads it: (n,) int32. Log probabilities are
        those of the raw distribution, so they are looked up before `masks` forbid anything."""
        if rows.size < len(hidden):
            last = q_start[1:][rows].astype(np.int64) - 1
            hidden = hidden.index_select(0, self._batches.to_device(last))
        logits = self._model.logits(hidden)
        slots, positions = plan.slots, plan.starts + plan.lens
        if rows.size < len(slots):
            slots, positions = slots[rows], positions[rows]
        wanted = self._sampling.logprobs[slots]
        chosen = np.flatnonzero(wanted >= 0)
        at = self._batches.to_device(chosen)
        raw, raw_rows = logits, chosen.astype(np.int32)
        if chosen.size and masks is not None:
            raw, raw_rows = logits.index_select(0, at), np.arange(chosen.size, dtype=np.int32)
        ended = masks.apply(logits) if masks is not None else []
        tokens = self._sampler.sample(logits, slots, positions)
        self._batches.write_tokens(slots, positions, tokens)
        more = []
        if chosen.size:
            scores = score(self._kernels, raw, tokens.index_select(0, at), int(wanted.max()), raw_rows)
            more = [
                scores.row(int(rows[i]), n, n + 1, int(wanted[i]), is_prompt=False)
                for n, i in enumerate(chosen)
            ]
        return tokens, more, [(int(rows[i]), reason) for i, reason in ended]

    def _pool(self, plan: StepPlan, q_start: Int32, hidden: torch.Tensor) -> list[RowPooled]:
        """What pooling requests asked for whose prompts end in this step."""
        ended = self._pooling.ended(plan)
        if not ended:
            return []
        spans = [(int(q_start[row]), int(q_start[row + 1])) for row, _ in ended]
        vectors = self._pooler.pool(hidden, spans, [params for _, params in ended])
        return [RowPooled(row, vector) for (row, _), vector in zip(ended, vectors, strict=True)]

    def _score_prompts(self, plan: StepPlan, q_start: Int32, hidden: torch.Tensor) -> list[RowLogprobs]:
        """Log probabilities of the prompt tokens at positions starts+1 .. starts+lens, for rows that asked."""
        wanted = self._sampling.prompt_logprobs[plan.slots]
        if wanted.max() < 0:
            return []
        result = []
        for row in np.flatnonzero(wanted >= 0).tolist():
            slot, start = int(plan.slots[row]), int(plan.starts[row])
            end = min(start + int(plan.lens[row]), int(self._sampling.num_prompt_tokens[slot]) - 1)
            if end <= start:
                continue
            parts: list[Scores] = []
            for first in range(start, end, SCORED_AT_ONCE):
                last = min(first + SCORED_AT_ONCE, end)
                states = hidden[q_start[row] + first - start : q_start[row] + last - start]
                targets = self._batches.read_tokens(slot, first + 1, last + 1)
                parts.append(score(self._kernels, self._model.logits(states), targets, int(wanted[row])))
            result.append(concatenate(parts).row(row, 0, end - start, int(wanted[row]), is_prompt=True))
        return result


def grammar_of(request: Request) -> Grammar | None:
    """The compiled grammar that a constrained request carries."""
    grammar = request.grammar
    assert (grammar is None) == (request.sampling.grammar is None), "a grammar is compiled before admission"
    assert grammar is None or isinstance(grammar, Grammar)
    return grammar


def slot_array(num_slots: int, width: int, device: torch.device) -> torch.Tensor:
    """Zeroed int32 (num_slots, width); on a CPU committed as it is used."""
    if device.type == "cpu":
        return lazy_zeros((num_slots, width), torch.int32)
    return torch.zeros((num_slots, width), dtype=torch.int32, device=device)
