"""A forward pass as a CUDA graph: captured once, then launched as one piece of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..interface import NotRecordable

WARM_UPS = 2  # libraries choose and load kernels at the first call, and some again at the second


class CudaRecorder:
    """Records passes on one device. Its recordings share memory: run one, use its result, then run another."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = (
            None  # memory of one stream's recordings is not used on another
        )

    def record(self, work: Callable[[], torch.Tensor]) -> CudaGraph:
        """Do `work`, on a stream of its own, and keep what it launches.

        Raises:
            NotRecordable: it did what cannot be captured, such as waiting for the device.
        """
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of this process use the device too, and what they do is none of this.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                result = work()
        except NotRecordable:
            raise
        except RuntimeError as error:
            raise NotRecordable(str(error).splitlines()[0]) from error
        recorded = CudaGraph(graph, result)
        recorded.replay()
        return recorded


class CudaGraph:
    """One recording."""

    def __init__(self, graph: torch.cuda.CUDAGraph, result: torch.Tensor) -> None:
        self.result = result
        self._graph = graph

    def replay(self) -> torch.Tensor:
        """Do it again on what its inputs hold now: the tensor that `work` returned, until the next replay of any."""
        self._graph.replay()
        return self.result
