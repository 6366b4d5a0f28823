"""Masks of the next tokens, made while the device computes.

The mask of a step depends on the token that the step before sampled, and is needed when the step's forward pass is
over. So a thread of its own waits for the tokens of step n, takes them in and fills the masks of step n+1 while the
device runs the forward pass of n+1. Steps without constrained rows cost a look at a flag.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ...kernels.interface import Ops
from ...scheduler.arrays import Int32
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

    def apply(self, logits: torch.Tensor) -> list[Ended]:
        """Forbid in logits (n, vocab_size), in place, what the grammars of its rows do. Returns the rows (of n) for
        which nothing is left; what is sampled there means nothing."""
        rows, ended = self._filled.result()
        if rows.size:
            bits, self.sent = self._stream.send(self._bits[: rows.size])
            self._ops.mask_logits(logits, bits, self._stream.stage([rows])[0])
        return ended


class MaskThread:
    """Keeps the matchers of all slots; its methods are called by the device thread, step by step."""

    def __init__(
        self, num_slots: int, vocab_size: int, ops: Ops, *, num_threads: int, stream: Stream | None = None
    ) -> None:
        """`num_threads` fill masks together."""
        self._ops = ops
        self._stream = stream or HostStream()
        self._matchers = Matchers(num_slots, vocab_size, num_threads=num_threads, stream=self._stream)
        self._thread = DeviceThread("masks")
        self._constrained = np.zeros(num_slots, np.bool_)
        self._any = False
        self._starts: list[Start] = []
        self._drawn: list[tuple[Masks, Fetch]] = []  # steps and their tokens

    def start(self, slot: int, grammar: Grammar | None, stop_token_ids: list[int], output: Int32) -> None:
        """The request in `slot` is another one from now on; `output` is what it has produced already."""
        if grammar is not None or self._constrained[slot]:
            self._constrained[slot] = grammar is not None
            self._any = bool(self._constrained.any())
            self._starts.append(Start(slot, grammar, stop_token_ids, output))

    def begin(self, slots: Int32) -> Masks | None:
        """A step begins that samples for `slots`, row by row. None if no grammar has a say in it."""
        if not self._any and not self._starts:
            return None
        rows = np.flatnonzero(self._constrained[slots])
        if not rows.size and not self._starts:
            return None
        drawn, starts, self._drawn, self._starts = self._drawn, self._starts, [], []
        of = slots[rows].tolist()
        filled = self._thread.submit(self._advance, drawn, starts, rows.tolist(), of)
        if not rows.size:
            return None
        return Masks(self._ops, self._matchers.bits, rows, of, filled, self._stream)

    def drawn(self, masks: Masks, fetch: Fetch) -> None:
        """The step of these masks sampled the tokens (n,) that come first in `fetch`."""
        self._drawn.append((masks, fetch))

    def close(self) -> None:
        self._thread.close()

    def _advance(
        self, drawn: list[tuple[Masks, Fetch]], starts: list[Start], rows: list[int], slots: list[int]
    ) -> tuple[Int32, list[Ended]]:
        """Catch up, then fill; on the thread, which waits for the device where it has to."""
        for masks, fetch in drawn:
            if masks.sent is not None:
                masks.sent.wait()
            tokens = fetch.arrays()[0]
            mine = tokens if masks.rows.size == tokens.size else tokens[masks.rows]
            self._matchers.accept(masks.slots, mine.tolist())
        for start in starts:
            self._matchers.start(start)
        return self._matchers.fill(rows, slots)
