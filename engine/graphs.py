"""Forward passes of few tokens run from recordings, one for each number of tokens."""

from __future__ import annotations

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable

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
