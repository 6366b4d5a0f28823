"""Masks of the next tokens, made while the device computes.

The mask of a step depends on the token that the step before sampled, and is needed when the step's forward pass is
over. So a thread of its own waits for the tokens of step n, takes them in and fills the masks of step n+1 while the
device runs the forward pass of n+1. Steps without constrained rows cost a look at a flag.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.interface import Ops
from ...scheduler.arrays import Int32
from ...spec.verify import Drafts, kept, num_right
from ..device_thread import DeviceThread, Promise
from ..streams import Event, Fetch, HostStream, Stream
from .matchers import Ended, Matchers, Start
from .store import Grammar


class Masks:
    """The masks of one step; `apply` waits for them."""

    def __init__(
        self,
        ops: Ops,
        bits: torch.Tensor,
        rows: npt.NDArray[np.intp],
        slots: list[int],
        filled: Promise[tuple[Int32, list[Ended]]],
        stream: Stream,
    ) -> None:
        """`rows` of the step are constrained, by the grammars of `slots`."""
        self._ops = ops
        self._stream = stream
        self.sent: Event | None = None  # after it `bits` may be written to
        self._bits = bits
        self._filled = filled
        self.rows = rows
        self.slots = slots

    @property
    def ended(self) -> list[Ended]:
        """The rows (of n) for which nothing is left."""
        return self._filled.result()[1]

    def apply(self, logits: torch.Tensor) -> list[Ended]:
        """Forbid in logits (n, vocab_size), in place, what the grammars of its rows do. Returns the rows (of n) for
        which nothing is left; what is sampled there means nothing."""
        rows, ended = self._filled.result()
        if rows.size:
            bits, self.sent = self._stream.send(self._bits[: rows.size])
            self._ops.mask_logits(logits, bits, self._stream.stage([rows])[0])
        return ended


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step drew, once it is there: a token for each of n rows, those of a row with drafts beside each other."""

    masks: Masks
    fetch: Fetch
    drafts: Drafts | None


class MaskThread:
    """Keeps the matchers of all slots; its methods are called by the device thread, step by step."""

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        ops: Ops,
        *,
        num_threads: int,
        stream: Stream | None = None,
        max_rows: int | None = None,
    ) -> None:
        """`num_threads` fill masks together, of up to `max_rows` rows in a step (None: one for each slot)."""
        self._ops = ops
        self._stream = stream or HostStream()
        self._matchers = Matchers(
            num_slots, vocab_size, num_threads=num_threads, stream=self._stream, max_rows=max_rows
        )
        self._thread = DeviceThread("masks")
        self._constrained = np.zeros(num_slots, np.bool_)
        self._any = False
        self._starts: list[Start] = []
        self._drawn: list[Drawn] = []

    def start(self, slot: int, grammar: Grammar | None, stop_token_ids: list[int], output: Int32) -> None:
        """The request in `slot` is another one from now on; `output` is what it has produced already."""
        if grammar is not None or self._constrained[slot]:
            self._constrained[slot] = grammar is not None
            self._any = bool(self._constrained.any())
            self._starts.append(Start(slot, grammar, stop_token_ids, output))

    def admit(self, slots: Int32, most: Int32, drafts: Drafts) -> tuple[Drafts, Int32]:
        """What of the drafts of `slots` (n,) may be verified, at most `most` (n,) tokens each, and how many of those
        were drafted: the others are what a grammar leaves no choice about. Waits for the thread."""
        rows = np.flatnonzero(self._constrained[slots] & (most > 0))
        if not rows.size:
            return drafts, drafts.counts
        drawn, starts = self._take_pending()
        ends = np.cumsum(drafts.counts)
        parts = np.split(drafts.tokens, ends[:-1])
        wanted = [(int(slots[row]), parts[row].tolist(), int(most[row])) for row in rows.tolist()]
        admitted = self._thread.submit(self._admit, drawn, starts, wanted).result()
        of_draft = drafts.counts.copy()
        for row, (tokens, count) in zip(rows.tolist(), admitted, strict=True):
            parts[row], of_draft[row] = np.array(tokens, np.int32), count
        counts = np.array([len(part) for part in parts], np.int32)
        return Drafts(counts, np.concatenate(parts)), of_draft

    def begin(self, slots: Int32, drafts: Drafts | None = None) -> Masks | None:
        """A step begins that samples for `slots`, row by row: counts[i] + 1 times for each row i of `drafts`, in order.
        None if no grammar has a say in it."""
        if not self._any and not self._starts:
            return None
        rows = np.flatnonzero(self._constrained[slots])
        if not rows.size and not self._starts:
            return None
        drawn, starts = self._take_pending()
        of = slots[rows].tolist()
        following: list[int] | None = None
        if drafts is not None:
            after = drafts.following()[rows]
            following = after.tolist() if (after >= 0).any() else None
        filled = self._thread.submit(self._advance, drawn, starts, rows.tolist(), of, following)
        if not rows.size:
            return None
        return Masks(self._ops, self._matchers.bits, rows, of, filled, self._stream)

    def drawn(self, masks: Masks, fetch: Fetch, drafts: Drafts | None = None) -> None:
        """The step of these masks sampled the tokens (n,) that come first in `fetch`."""
        self._drawn.append(Drawn(masks, fetch, drafts))

    def _take_pending(self) -> tuple[list[Drawn], list[Start]]:
        drawn, starts, self._drawn, self._starts = self._drawn, self._starts, [], []
        return drawn, starts

    def close(self) -> None:
        self._thread.close()

    # ------------------------------------------------------------------------------------------------- on the thread

    def _advance(
        self,
        drawn: list[Drawn],
        starts: list[Start],
        rows: list[int],
        slots: list[int],
        following: list[int] | None,
    ) -> tuple[Int32, list[Ended]]:
        """Catch up, then fill."""
        self._catch_up(drawn, starts)
        if following is not None:
            return self._matchers.fill_drafted(rows, slots, following)
        return self._matchers.fill(rows, slots)

    def _admit(
        self, drawn: list[Drawn], starts: list[Start], wanted: list[tuple[int, list[int], int]]
    ) -> list[tuple[list[int], int]]:
        self._catch_up(drawn, starts)
        return [self._matchers.admit(slot, draft, most) for slot, draft, most in wanted]

    def _catch_up(self, drawn: list[Drawn], starts: list[Start]) -> None:
        """Take in what steps drew, waited for where it has to be, and then who is new."""
        for step in drawn:
            masks, tokens = step.masks, step.fetch.arrays()[0]
            if masks.sent is not None:
                masks.sent.wait()
            if step.drafts is None:
                mine = tokens if masks.rows.size == tokens.size else tokens[masks.rows]
                self._matchers.accept(masks.slots, mine.tolist())
                continue
            remain = kept(step.drafts.counts, num_right(tokens, step.drafts))[masks.rows]
            over = {row for row, _ in masks.ended}
            for row, slot in zip(
                masks.rows[remain].tolist(), np.array(masks.slots)[remain].tolist(), strict=True
            ):
                if row in over:
                    self._matchers.drop(slot)
                else:
                    self._matchers.accept([slot], [int(tokens[row])])
        for start in starts:
            self._matchers.start(start)
