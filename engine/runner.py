"""Runs step plans: applies their deltas to the device's slots, forwards the batch, samples, reports.

Everything that a steady decode step needs is on the device already (tokens, page tables, sampling parameters); the
plan brings index arrays only. Steps go one after the other through a thread of their own, so the caller plans the next
one meanwhile. On a CPU the thread does them; a device that works on its own is only given them, and the thread is
through before the device is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..kernels.attention.interface import AttentionBackend
from ..kernels.interface import Recorder
from ..kernels.sampling.interface import Float64
from ..kernels.staged import staged
from ..scheduler.arrays import Int32
from ..scheduler.plan import StepPlan, StepResult
from ..spec.verify import offsets
from .batch import BatchBuilder, DeviceSlots, ForwardBatch
from .bound import Bound, DrawnRows, drawn_rows
from .device_thread import DeviceThread
from .enqueued import EnqueuedStep, LaunchedStep
from .grammar.masks import Masks, MaskThread
from .graphs import CapturedForward, GraphedForward
from .host_memory import lazy_zeros
from .layers.decoder import Decoder
from .logprobs import ScoredRow, Scores, concatenate, score
from .new_slot import NewSlot, new_slot
from .parallel.ranks import Ranks
from .pooling import Pooler, PoolingSlots
from .prefault import Prefault
from .sampler import Sampler
from .sampling_state import SamplingState
from .speculation import Binding, Speculation
from .step_runner import StepHandle
from .streams import HostTimer, Stream, Timer, open_stream

WARM_UP_TOKENS = 64
SCORED_AT_ONCE = 128  # prompt positions whose logits (float32, whole vocabulary) are held at a time


@dataclass(slots=True)
class Sampled:
    """What sampling needs of a step; on the host unless said."""

    drawn: DrawnRows
    q_start: Int32  # (rows of the batch + 1,)
    slots: Int32  # (n,)
    wanted: Int32  # (n,) alternatives whose log probabilities are wanted; -1 for none at all
    scored: Int32  # which of the n want any
    scored_on_device: torch.Tensor | None
    uniform: Float64 | None  # (n,) what the sampler prepared
    last: torch.Tensor | None  # (n,) int64 on the device: the tokens whose states count; None: the first n
    places: torch.Tensor | None  # (n,) int64 on the device: where the tokens go in the token buffer


class ModelRunner:
    """Owns the model, its KV pages, the token buffer (num_slots, max_model_len), page tables and sampling state.

    Of several `ranks` each has one, with its shard of the model, and runs every step; the leader drafts and samples.
    """

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
        stream: Stream | None = None,  # to the device; None = the one that fits it
        capture_sizes: Sequence[
            int
        ] = (),  # batch sizes to record at start; none = whatever comes, as it comes
        scratch_pages: Sequence[int] = (),  # per KV group one that no request has, for padding rows
        speculation: Callable[[DeviceSlots], Speculation] | None = None,
        ranks: Ranks | None = None,  # None = this is the only one
    ) -> None:
        self.num_slots = num_slots
        self._ranks = ranks
        self._model = model
        self._stream = stream or open_stream(device)
        self._graphs: GraphedForward | CapturedForward
        if recorder is not None and capture_sizes:
            self._graphs = CapturedForward(model.forward, recorder, capture_sizes, device)
        else:
            self._graphs = GraphedForward(model.forward, recorder, device)
        self._forward: Callable[[ForwardBatch], torch.Tensor] = self._graphs
        self._attention = attention
        self._vocab_size = model.config.vocab_size
        self._max_model_len = max_model_len
        self._thread = thread
        self._prefaults = prefaults
        self._scratch_slot = num_slots
        width = -(-max_model_len // page_size)
        self._token_buffer = slot_array(num_slots + 1, max_model_len, device)
        self._page_tables = [slot_array(num_slots + 1, width, device) for _ in attention]
        for table, page in zip(self._page_tables, scratch_pages, strict=False):
            table[self._scratch_slot] = page
        self._batches = BatchBuilder(
            self._token_buffer, self._page_tables, kv, self._stream, self._scratch_slot
        )
        self._sampling = SamplingState(num_slots, self._vocab_size, device, self._stream)
        self._kernels = model.ops.sampling
        self._sampler = Sampler(self._sampling, self._kernels)
        self._grammars = grammars
        self._pooler = pooler
        self._pooling = PoolingSlots()
        self._speculation = (
            speculation(DeviceSlots(self._token_buffer, self._page_tables))
            if speculation is not None
            else None
        )

    def launch(self, plan: StepPlan) -> StepHandle:
        """Start a step and return at once; its `result()` waits for it and raises what went wrong in it."""
        return self.start(plan, [new_slot(init) for init in plan.inits])

    def start(self, plan: StepPlan, new: list[NewSlot], bound: Bound | None = None) -> StepHandle:
        """The same for a step whose new slots are given, and its drafts, if it has any. Other ranks hear of it at once,
        or when its drafts are known."""
        timer = None
        if self._ranks is not None:
            if self._speculation is None:
                self._ranks.announce(plan, new)
            if self._ranks.grid.stages > 1:
                timer = HostTimer()  # a step is on its way through the other stages before this one sees it
        if self._stream.runs_ahead:
            return LaunchedStep(self._thread.submit(self._enqueue, plan, new, bound, timer), self._pooler)
        return self._thread.submit(self._step, plan, new, bound, timer)

    def capture(self, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """Record the passes of the sizes that were asked for, the largest first: the others fit into its memory.
        `progress` hears the share done."""
        sizes = self._graphs.padding.sizes[::-1]
        for done, size in enumerate(sizes):
            progress(done / len(sizes))
            if not self._thread.submit(self._capture, size).result():
                return

    def warm_up(self) -> None:
        """Run a prefill and decodes in slot 0: the first request finds everything touched, chosen and recorded."""
        length = max(0, min(WARM_UP_TOKENS, self._max_model_len - 2))  # decodes have room for what they draw
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
        if self._ranks is not None:
            self._ranks.close()

    # ------------------------------------------------------------------------------------------- on the device thread

    def _step(
        self, plan: StepPlan, new: list[NewSlot], bound: Bound | None, timer: Timer | None
    ) -> StepResult:
        return self._enqueue(plan, new, bound, timer).collect(self._pooler)

    def _enqueue(
        self, plan: StepPlan, new: list[NewSlot], bound: Bound | None, timer: Timer | None
    ) -> EnqueuedStep:
        """Give the step to the device. A steady decode step waits for nothing here; a step with grammars waits, once
        its forward pass is enqueued, for the tokens of the step before. Without a `timer` its time begins now."""
        step = EnqueuedStep(counts=plan.sample.astype(np.int32), timer=timer or self._stream.timer())
        binding = Binding(plan, bound)
        if self._speculation is not None:
            step.is_granted = plan.drafts is not None
            binding = self._speculate(self._speculation, plan, new)
            if self._ranks is not None:
                self._ranks.announce(binding.plan, new, binding.bound)
        num_decodes = plan.num_decode_rows
        plan, step.bound, step.draft_seconds = binding.plan, binding.bound, binding.seconds
        for init in new:
            self._start(init)
        self._write_known(plan, step.bound)
        drawn = drawn_rows(plan, step.bound)
        masks = self._grammars.begin(drawn.slots, drawn.drafts)
        batch, sampled = self._build(plan, drawn)
        for backend, attention_batch in zip(self._attention, batch.attention, strict=True):
            backend.plan(attention_batch)
        hidden = self._forward(batch)
        if self._speculation is not None:
            self._speculation.computed(plan, num_decodes, hidden)
        if self._ranks is None or self._ranks.has_head:
            self._score_prompts(step, plan, sampled.q_start, hidden)
            if drawn.rows.size:
                self._sample(step, hidden, sampled, masks)
            self._pool(step, plan, sampled.q_start, hidden)
        fetch = step.start_fetch(self._stream)
        if drawn.rows.size and masks is not None:
            self._grammars.drawn(masks, fetch, drawn.drafts)
        if self._speculation is not None:
            self._speculation.enqueued(binding, step)
        return step

    def _speculate(self, speculation: Speculation, plan: StepPlan, new: list[NewSlot]) -> Binding:
        """The plan with its drafts, and without what is done of it already."""
        speculation.settle(plan)
        for slot in plan.left:
            speculation.stop(slot)
        for init in new:
            if init.pooling is None:
                speculation.start(
                    init.slot,
                    init.tokens,
                    init.num_prompt_tokens,
                    prediction=init.prediction,
                    cache_salt=init.cache_salt,
                )
        speculation.keep_up(plan)
        if speculation.is_on_device:  # drafts are made on the pages of this plan
            updates = self._table_updates(plan)
            if updates:
                self._update_tables(plan, self._stream.stage(updates))
            plan = replace(plan, pages=[])
        began = time.perf_counter()
        binding = speculation.bind(plan, self._grammars.admit)
        binding.seconds = time.perf_counter() - began
        return binding

    def _write_known(self, plan: StepPlan, bound: Bound | None) -> None:
        """Tokens that the step reads and that no earlier one has drawn here."""
        if bound is not None:
            drafts = bound.drafts
            slots = np.repeat(plan.slots, drafts.counts)
            positions = np.repeat(plan.starts, drafts.counts) + offsets(drafts.counts) + np.int32(1)
            tokens = drafts.tokens
        elif plan.decode_tokens is not None and plan.num_decode_rows:
            slots, positions = plan.slots[: plan.num_decode_rows], plan.starts[: plan.num_decode_rows]
            tokens = plan.decode_tokens
        else:
            return
        places, known = self._stream.stage([self._batches.places(slots, positions), tokens])
        self._batches.write_tokens(places, known)

    def _start(self, init: NewSlot) -> None:
        """A request that came since the last step."""
        known = self._stream.stage([init.tokens.copy()])[0]
        self._token_buffer[init.slot, : len(known)] = known
        self._sampling.write(init.slot, init.tokens, init.num_prompt_tokens, init.sampling)
        self._pooling.write(init.slot, len(known), init.pooling)
        self._grammars.start(
            init.slot, init.grammar, init.sampling.stop_token_ids, init.tokens[init.num_prompt_tokens :]
        )

    def _build(self, plan: StepPlan, drawn: DrawnRows) -> tuple[ForwardBatch, Sampled]:
        """The batch, with the page tables up to date, and what sampling needs beside it."""
        count = len(plan.slots)
        decodes = plan.num_decode_rows == count
        arrays = self._batches.index(plan, self._graphs.padding.of(count) if decodes else 0)
        slots, positions = drawn.slots, drawn.positions
        wanted = self._sampling.logprobs[slots]
        scored = np.flatnonzero(wanted >= 0).astype(np.int32)
        uniform = self._sampler.prepare(slots, positions) if slots.size else None
        # What goes to the device beside the batch, all of it in one copy.
        others: dict[str, np.ndarray] = {}
        if slots.size:
            others["places"] = self._batches.places(slots, positions)
        if not decodes:
            others["last"] = drawn.last
        if scored.size:
            others["scored"] = scored
        if uniform is not None and self._stream.runs_ahead:
            others["slots"], others["uniform"] = slots, uniform
        batch, on_device = self._batches.build(plan, arrays, [*others.values(), *self._table_updates(plan)])
        theirs = dict(zip(others, on_device, strict=False))
        self._update_tables(plan, on_device[len(others) :])
        if "uniform" in theirs and uniform is not None:
            slots, uniform = staged(slots, theirs["slots"]), staged(uniform, theirs["uniform"])
        if "scored" in theirs:
            scored = staged(scored, theirs["scored"])
        # States within a prompt are looked at if they are pooled or scored.
        cut = not decodes and not self._pooling.ended(plan)
        cut = cut and not (self._speculation is not None and self._speculation.reads_last)
        if cut and self._sampling.prompt_logprobs[plan.slots].max() < 0:
            batch.wanted = theirs["last"]
        sampled = Sampled(
            drawn=drawn,
            q_start=arrays.q_start,
            slots=slots,
            wanted=wanted,
            scored=scored,
            scored_on_device=theirs.get("scored"),
            uniform=uniform,
            last=theirs.get("last"),
            places=theirs.get("places"),
        )
        return batch, sampled

    def _table_updates(self, plan: StepPlan) -> list[np.ndarray]:
        """For each page table that changes its places, flat, and the pages that come there."""
        arrays = []
        for table, updates in zip(self._page_tables, plan.pages, strict=False):
            if updates.slots.size:
                places = updates.slots.astype(np.int64) * table.shape[1] + updates.indexes
                arrays += [places, updates.pages]
        return arrays

    def _update_tables(self, plan: StepPlan, staged_updates: Sequence[torch.Tensor]) -> None:
        """Write to the page tables what `_table_updates` gave; the pages are about to be used."""
        arrays = iter(staged_updates)
        for table, updates in zip(self._page_tables, plan.pages, strict=False):
            if updates.slots.size:
                table.view(-1).index_copy_(0, next(arrays), next(arrays))
        for prefault, updates in zip(self._prefaults, plan.pages, strict=False):
            if updates.pages.size:
                prefault.reach(int(updates.pages.max()))

    def _sample(
        self, step: EnqueuedStep, hidden: torch.Tensor, sampled: Sampled, masks: Masks | None
    ) -> None:
        """The next token of the sampled rows, written where the next step reads it. Log probabilities are those of the
        raw distribution, so they are looked up before `masks` forbid anything."""
        drawn = sampled.drawn
        count = drawn.rows.size
        if count < len(hidden):
            hidden = hidden[:count] if sampled.last is None else hidden.index_select(0, sampled.last)
        logits = self._model.logits(hidden)
        assert sampled.places is not None
        if self._ranks is not None and not self._ranks.leads:
            step.tokens = self._ranks.hear_tokens(count, logits.device)
            if step.tokens is not None:
                self._batches.write_tokens(sampled.places, step.tokens)
            return
        scored, at = sampled.scored, sampled.scored_on_device
        raw, raw_rows = logits, scored
        if at is not None and masks is not None:
            raw, raw_rows = logits.index_select(0, at), np.arange(scored.size, dtype=np.int32)
        if masks is not None:
            step.ended = [drawn.end(index, reason) for index, reason in masks.apply(logits)]
        if drawn.drafts is None:
            tokens = self._sampler.sample(logits, sampled.slots, drawn.positions, sampled.uniform)
        else:
            tokens = self._sampler.sample_drafted(
                logits, sampled.slots, drawn.positions, sampled.uniform, drawn.drafts
            )
        step.tokens = tokens
        if self._ranks is not None:
            self._ranks.tell_tokens(tokens)
        self._batches.write_tokens(sampled.places, tokens)
        if at is not None:
            most = int(sampled.wanted.max())
            # Of what a row does not come to nobody asks the scores.
            looked_up = tokens.index_select(0, at).clamp_(min=0)
            scores = score(self._kernels, raw, looked_up, most, raw_rows)
            owners = drawn.rows[scored]
            firsts = np.flatnonzero(np.diff(owners, prepend=-1)).tolist()
            rows = [
                ScoredRow(
                    int(owners[first]), first, last, int(sampled.wanted[scored[first]]), is_prompt=False
                )
                for first, last in zip(firsts, [*firsts[1:], len(owners)], strict=True)
            ]
            step.scored.append((scores, rows))

    def _pool(self, step: EnqueuedStep, plan: StepPlan, q_start: Int32, hidden: torch.Tensor) -> None:
        """What pooling requests asked for whose prompts end in this step."""
        ended = self._pooling.ended(plan)
        if ended:
            spans = [(int(q_start[row]), int(q_start[row + 1])) for row, _ in ended]
            step.pooled_rows = ended
            step.pooled = self._pooler.states(hidden, spans, [params for _, params in ended])

    def _score_prompts(
        self, step: EnqueuedStep, plan: StepPlan, q_start: Int32, hidden: torch.Tensor
    ) -> None:
        """Log probabilities of the prompt tokens at positions starts+1 .. starts+lens, for rows that asked."""
        wanted = self._sampling.prompt_logprobs[plan.slots]
        if wanted.max() < 0:
            return
        for row in np.flatnonzero(wanted >= 0).tolist():
            slot, start = int(plan.slots[row]), int(plan.starts[row])
            end = min(start + int(plan.lens[row]), int(self._sampling.num_prompt_tokens[slot]) - 1)
            if end <= start:
                continue
            parts: list[Scores] = []
            for first in range(start, end, SCORED_AT_ONCE):
                last = min(first + SCORED_AT_ONCE, end)
                states = hidden[q_start[row] + first - start : q_start[row] + last - start]
                logits = self._model.logits(states)
                if self._ranks is None or self._ranks.leads:
                    targets = self._batches.read_tokens(slot, first + 1, last + 1)
                    parts.append(score(self._kernels, logits, targets, int(wanted[row])))
            if not parts:
                continue
            mine = ScoredRow(row, 0, end - start, int(wanted[row]), is_prompt=True)
            step.scored.append((concatenate(parts), [mine]))

    def _capture(self, size: int) -> bool:
        """Record decodes of `size` padding rows."""
        assert isinstance(self._graphs, CapturedForward)
        batch, _ = self._batches.build(scratch_decodes(self._scratch_slot, size))
        for backend, attention_batch in zip(self._attention, batch.attention, strict=True):
            backend.plan(attention_batch)
        return self._graphs.capture(batch)


def scratch_decodes(slot: int, count: int) -> StepPlan:
    """Padding rows and nothing else."""
    return StepPlan(
        step=-1,
        slots=np.full(count, slot, np.int32),
        starts=np.zeros(count, np.int32),
        lens=np.ones(count, np.int32),
        sample=np.zeros(count, np.bool_),
        num_decode_rows=count,
        num_tokens=count,
    )


def slot_array(num_slots: int, width: int, device: torch.device) -> torch.Tensor:
    """Zeroed int32 (num_slots, width); on a CPU committed as it is used."""
    if device.type == "cpu":
        return lazy_zeros((num_slots, width), torch.int32)
    return torch.zeros((num_slots, width), dtype=torch.int32, device=device)
