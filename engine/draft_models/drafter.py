"""Drafts by a model on the device, one token after the other, with keys and values in the pages of the target.

Entries (`model.py`) are made from what the target said, or, within a draft, from the drafter's own. The first kind is
made for chunks of prompts right behind the target's pass, and for decoding rows when they draft next, or before what
they need would be overwritten; only its keys and values are computed. A draft then is a chain of passes, each with one
entry per row, that leave tokens on the device; they are fetched once, at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from ...kernels.interface import Recorder
from ...scheduler.arrays import Int32
from ...scheduler.plan import StepPlan
from ...spec.step_cost import StepCost
from ...spec.verify import Drafts
from ..batch import BatchBuilder, ForwardBatch, PagePlaces
from ..graphs import GraphedForward
from ..kv_pool import zeros
from ..streams import RING, Stream
from .features import FeatureStore, Spans
from .interface import DeviceDrafter
from .model import DraftModel

SPARE_POSITIONS = 8  # that a row may decode before it must be caught up with


def staging_buffers(num_modules: int) -> int:
    """Of the stream of a drafter: a batch is staged once and used by all modules, each of which stages some more."""
    return RING + 4 * num_modules


class ModelDrafter(DeviceDrafter):
    """All methods run on the device's thread, but `predicted`."""

    num_sources = 1

    def __init__(
        self,
        model: DraftModel,
        kv: list[tuple[torch.Tensor, torch.Tensor]],  # of each module
        page_ends: Sequence[torch.Tensor],  # of each module (num_pages, feature_size)
        token_buffer: torch.Tensor,  # (num_slots + 1, max_model_len) int32
        page_table: torch.Tensor,  # (num_slots + 1, max_pages) int32, of the group whose pages these are
        *,
        page_size: int,
        max_draft_tokens: int,
        stream: Stream,
        new_recorder: Callable[[], Recorder | None] = lambda: None,  # of passes
    ) -> None:
        num_slots, device = len(token_buffer), token_buffer.device
        self._model = model
        self._stream = stream
        self._page_size = page_size
        self._table, self._table_width = page_table.view(-1), page_table.shape[1]
        self._batches = BatchBuilder(token_buffer, [page_table], kv, stream, num_slots - 1)
        window = max_draft_tokens + 2 + SPARE_POSITIONS
        self._stores = [
            FeatureStore(
                zeros((num_slots, window, model.feature_size), model.dtype, device),
                ends,
                page_table,
                page_size,
                stream,
            )
            for ends in page_ends
        ]
        self._window = window
        # Inputs and results of a pass, at fixed addresses.
        self._inputs = [zeros((num_slots, model.feature_size), model.dtype, device) for _ in model.modules]
        self._drafted = torch.zeros((num_slots, 1), dtype=torch.int32, device=device)
        self._passes = [
            GraphedForward(partial(self._forward, number), new_recorder(), device)
            for number in range(len(model.modules))
        ]
        self._ready: Int32 = np.zeros(num_slots, np.int32)  # a slot's first entry that is not made yet
        self._reach: Int32 = np.zeros(num_slots, np.int32)  # positions that the target was given
        self._leaving: list[tuple[int, int, int]] = []  # (slot, ready, reach) of requests that left
        self._cost = StepCost()
        self._is_warm = False  # until the first draft, whose time says nothing
        self.reads_last = model.reads_last
        self.seconds = 0.0  # that the latest draft took

    # ------------------------------------------------------------------------------------------------ coming and going

    def start(
        self,
        slot: int,
        tokens: Int32,
        prediction: Int32 | None = None,
        *,
        num_prompt_tokens: int | None = None,
        cache_salt: str = "",
    ) -> None:
        self._ready[slot] = self._reach[slot] = 0

    def extend(self, slots: Int32, counts: Int32, tokens: Int32, verified: Int32 | None = None) -> None:
        """All of it is on the device."""

    def predicted(self, slots: Int32) -> tuple[Int32, Int32]:
        none = np.zeros(len(slots), np.int32)
        return none, none

    def stop(self, slot: int) -> None:
        """Its pages may be found by others: what is missing in them is made before the next step."""
        if self._ready[slot] < self._reach[slot]:
            self._leaving.append((slot, int(self._ready[slot]), int(self._reach[slot])))
        self._ready[slot] = self._reach[slot] = 0

    # ------------------------------------------------------------------------------------------------------- each step

    def pass_seconds(self, num_rows: int) -> float:
        return self._cost.seconds(num_rows) if self._cost.is_known else 0.0

    def keep_up(self, slots: Int32, positions: Int32, lens: Int32) -> None:
        """Before a step in which `slots` (n,) go on from `positions`, with at most `lens` tokens each."""
        if self._leaving:
            leaving, self._leaving = np.array(self._leaving, np.int32), []
            self._fill(Spans(*leaving.T.copy()))
        lag = positions - self._ready[slots]
        if not lag.size or not (lag + lens >= self._window).any():
            return
        self._catch_up(slots[lag >= SPARE_POSITIONS // 2], positions[lag >= SPARE_POSITIONS // 2])

    def draft(self, slots: Int32, positions: Int32, lens: Int32) -> Drafts:
        """Drafts of lens (n,) tokens behind the newest ones, which are at `positions`; waits for the tokens."""
        self.seconds = 0.0
        if not lens.any():
            return Drafts(lens, lens[:0])
        timer = self._stream.timer()
        order = np.argsort(-lens, kind="stable")[: np.count_nonzero(lens)]
        slots, positions, counts = slots[order], positions[order], lens[order]
        self._catch_up(slots, positions)
        latest: list[torch.Tensor] = []
        drafted, sizes = [], []
        for number in range(int(counts[0])):
            sizes.append(int(np.count_nonzero(counts > number)))
            rows = slice(sizes[-1])
            latest = [features[rows] for features in latest]
            tokens, latest = self._chain(number, slots[rows], positions[rows] + np.int32(number), latest)
            drafted.append(tokens)
        self._ready[slots] = positions + 1
        fetch = self._stream.fetch([torch.cat(drafted)])
        timer.stop()
        (flat,) = fetch.arrays()
        self.seconds = timer.seconds()
        if self._is_warm:
            self._cost.observe(len(slots), self.seconds / len(sizes))
        self._is_warm = True
        table = np.zeros((len(sizes), len(slots)), np.int32)
        table[np.arange(len(slots)) < np.array(sizes)[:, None]] = flat
        in_order = Drafts(counts, table.T[np.arange(len(sizes)) < counts[:, None]])
        place = np.full(lens.size, -1)
        place[order] = np.arange(order.size)
        return Drafts(lens, in_order.take(place[lens > 0]).tokens)

    def computed(self, plan: StepPlan, num_decodes: int, hidden: torch.Tensor) -> None:
        """The target's pass of `plan`, whose first `num_decodes` rows decode, gave `hidden`."""
        spans = Spans(plan.slots, plan.starts, plan.starts + plan.lens)
        features = self._model.features(hidden, plan.num_tokens)
        self._reach[plan.slots] = spans.ends
        if num_decodes == len(plan.slots):
            self._stores[0].write(spans, features)
            return
        chunks = spans.behind(num_decodes)
        self._fill(chunks, self._stores[0].write(spans, features, num_decodes))
        self._ready[chunks.slots] = chunks.ends

    # ---------------------------------------------------------------------------------------------------------- inside

    def _catch_up(self, slots: Int32, positions: Int32) -> None:
        """Make the entries of `slots` below `positions`."""
        behind = self._ready[slots] < positions
        if behind.any():
            slots, positions = slots[behind], positions[behind]
            self._fill(Spans(slots, self._ready[slots], positions))
            self._ready[slots] = positions

    def _fill(self, spans: Spans, features: torch.Tensor | None = None) -> None:
        """Make the entries of `spans` in every module, `features` (num_tokens, feature_size) being of the positions
        before; None: they are among the slots' latest."""
        slots, positions = spans.tokens()
        places = self._places_in_table(slots, positions)
        plan = plan_of(spans, num_decode_rows=0)
        batch, (in_table, offsets) = self._batches.build(
            plan, None, [places, positions.astype(np.int64) % self._page_size]
        )
        if features is None:
            features = self._stores[0].before(slots, positions)
        pages = self._table.index_select(0, in_table).long()
        for number, module in enumerate(self._model.modules):
            blank = self._blank(number, positions)
            if number == len(self._model.modules) - 1:
                module.write(batch, features, PagePlaces(pages, offsets), blank)
                return
            module.attention.plan(batch.attention[0])
            states, _ = module.forward(batch, features, blank)
            following = self._stores[number + 1].write(spans, states, 0)
            assert following is not None
            features = following

    def _chain(
        self, number: int, slots: Int32, positions: Int32, latest: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One entry for each row, in every module that has not drafted before: the token drafted by the first of them,
        int32 (n,), and what each module goes on from, as `latest` is of the entries before."""
        modules, stores = self._model.modules, self._stores
        spans = Spans(slots, positions, positions + np.int32(1))
        plan = plan_of(spans, num_decode_rows=len(slots))
        batch, (places,) = self._batches.build(plan, None, [self._batches.places(slots, positions + 1)])
        first = min(number, len(modules) - 1)
        if number == 0:
            latest = [store.before(slots, positions) for store in stores]
        following = list(latest)
        tokens = None
        for at in range(first, len(modules)):
            modules[at].attention.plan(batch.attention[0])
            inputs = self._inputs[at][: len(slots)]
            inputs.copy_(latest[at])
            blank = self._blank(at, positions)
            if blank is not None:
                states, normed = modules[at].forward(batch, inputs, blank)
                drafted = self._model.tokens(at, normed)
            else:
                states = self._passes[at](batch)
                drafted = self._drafted[: len(slots), 0]
            if at == first:
                tokens = drafted.clone()
            if at + 1 < len(modules):
                following[at + 1] = states.clone()
                if number == 0:
                    stores[at + 1].write(spans, states)
            elif first == at:
                following[at] = states
        assert tokens is not None
        self._batches.write_tokens(places, tokens)
        return tokens, following

    def _forward(self, number: int, batch: ForwardBatch) -> torch.Tensor:
        """A pass of one module, from its inputs: the features that follow; the tokens are in `_drafted`."""
        count = len(batch.tokens)
        states, normed = self._model.modules[number].forward(batch, self._inputs[number][:count])
        drafted = self._model.tokens(number, normed)
        self._model.ops.copy_rows(drafted.view(-1, 1), self._drafted[:count])
        return states

    def _blank(self, number: int, positions: Int32) -> torch.Tensor | None:
        """(n, 1) bool: where the embedding is zeros, if that is anywhere."""
        if not self._model.modules[number].blanks_first:
            return None
        is_first = positions == number + 1
        if not is_first.any():
            return None
        return self._stream.stage([is_first[:, None]])[0]

    def _places_in_table(self, slots: Int32, positions: Int32) -> np.ndarray:
        return slots.astype(np.int64) * self._table_width + positions // self._page_size


def plan_of(spans: Spans, *, num_decode_rows: int) -> StepPlan:
    """A step of these positions that draws nothing."""
    return StepPlan(
        step=-1,
        slots=spans.slots,
        starts=spans.begins,
        lens=spans.lens,
        sample=np.zeros(len(spans.slots), np.bool_),
        num_decode_rows=num_decode_rows,
        num_tokens=spans.num_tokens,
    )
