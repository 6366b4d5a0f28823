"""Forward passes of few tokens run from recordings: of any number of tokens as they come, or of sizes made at start."""

from __future__ import annotations

import dataclasses
import logging
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from ..kernels.interface import Graph, NotRecordable, Recorder
from .batch import ForwardBatch

log = logging.getLogger(__name__)

MAX_TOKENS = 512  # beyond it the kernels take so long that the Python between them costs nothing
MAX_GRAPHS = 256


class GraphedForward:
    """Calls `forward`, or replays it where a pass of as many tokens was recorded.

    A number of tokens is recorded when it comes for the second time: decodes repeat, most chunks of prompts do not.
    What depends on lengths is not in a recording; the attention back ends plan each step as ever.
    """

    def __init__(
        self,
        forward: Callable[[ForwardBatch], torch.Tensor],
        recorder: Recorder | None,  # None: nothing is recorded
        device: torch.device,
    ) -> None:
        self.padding = PaddedSizes(())
        self._forward = forward
        self._recorder = recorder
        self._tokens = torch.zeros(MAX_TOKENS, dtype=torch.int32, device=device)
        self._positions = torch.zeros(MAX_TOKENS, dtype=torch.int32, device=device)
        self._graphs: OrderedDict[int, Graph | None] = OrderedDict()  # None: seen once

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        """What `forward` returns, a recording the states of all tokens; good until the next pass."""
        count = len(batch.tokens)
        if self._recorder is None or count > MAX_TOKENS:
            return self._forward(batch)
        graph = self._graphs.get(count)
        if graph is None and count not in self._graphs:
            self._remember(count, None)
            return self._forward(batch)
        self._graphs.move_to_end(count)
        tokens, positions = self._tokens[:count], self._positions[:count]
        tokens.copy_(batch.tokens)
        positions.copy_(batch.positions)
        if graph is not None:
            return graph.replay()
        fixed = dataclasses.replace(batch, tokens=tokens, positions=positions, wanted=None)
        try:
            graph = self._recorder.record(lambda: self._forward(fixed))
        except NotRecordable as error:
            log.info("every step runs without a recording: %s", error)
            self._recorder = None
            return self._forward(batch)
        self._remember(count, graph)
        return graph.result

    def _remember(self, count: int, graph: Graph | None) -> None:
        self._graphs[count] = graph
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)


class PaddedSizes:
    """The batch sizes that steps of decodes alone run at: recordings exist for these, so smaller ones are filled up."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sorted(set(sizes))

    def of(self, rows: int) -> int:
        """The smallest size that holds `rows` decodes; `rows` itself where none does."""
        at = bisect_left(self.sizes, rows)
        return self.sizes[at] if at < len(self.sizes) else rows


class CapturedForward:
    """Calls `forward`, or for decodes in a batch of a recorded size replays it.

    Everything is recorded before the first request. The attention back ends plan each step before it is replayed, on
    a batch of the recorded size, as they did before it was recorded.
    """

    def __init__(
        self,
        forward: Callable[[ForwardBatch], torch.Tensor],
        recorder: Recorder,
        sizes: Sequence[int],
        device: torch.device,
    ) -> None:
        self.padding = PaddedSizes(sizes)
        self._forward = forward
        self._recorder = recorder
        largest = max(sizes)
        self._tokens = torch.zeros(largest, dtype=torch.int32, device=device)
        self._positions = torch.zeros(largest, dtype=torch.int32, device=device)
        self._graphs: dict[int, Graph] = {}

    def capture(self, batch: ForwardBatch) -> bool:
        """Record the pass of a padded batch that has been planned. False: no pass can be recorded, and none will be."""
        count = len(batch.tokens)
        fixed = dataclasses.replace(batch, tokens=self._tokens[:count], positions=self._positions[:count])
        try:
            self._graphs[count] = self._recorder.record(lambda: self._forward(fixed))
        except NotRecordable as error:
            log.info("every step runs without a recording: %s", error)
            self._graphs.clear()
            self.padding = PaddedSizes(())
            return False
        return True

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        """What `forward` returns; of a recording good until the next pass."""
        count = len(batch.tokens)
        graph = self._graphs.get(count) if batch.attention[0].num_decode_rows == count else None
        if graph is None:
            return self._forward(batch)
        self._tokens[:count].copy_(batch.tokens)
        self._positions[:count].copy_(batch.positions)
        return graph.replay()


def default_sizes(max_num_seqs: int, largest: int = MAX_TOKENS) -> tuple[int, ...]:
    """1, 2, 4, the multiples of 8 to 256, of 16 beyond, as far as steps of decodes go, and their largest itself."""
    last = min(max_num_seqs, largest)
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, last + 1, 16)]
    return (*(size for size in sizes if size < last), last)
