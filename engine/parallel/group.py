"""A few ranks that exchange tensors: the collectives of tensor parallelism and the hand-over between stages.

Each group has a torch back end of its own (NCCL on GPUs, gloo over the loopback interface on CPUs) and nothing is
registered with torch's process-wide default group.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

# A rank that waits longer for another takes the replica down. Stages of a pipeline wait for whole steps of others.
TIMEOUT = timedelta(seconds=300)
LOOPBACK = "127.0.0.1"


class Backend(Protocol):
    """What is used of torch's back ends; their own stubs lack it."""

    def allreduce(self, tensors: list[torch.Tensor]) -> dist.Work: ...

    def gather(
        self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], options: Any
    ) -> dist.Work: ...

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> dist.Work: ...

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> dist.Work: ...

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> dist.Work: ...


class Group:
    """`rank` of `size`. A group of one exchanges nothing and is never connected."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self._backend: Backend | None = None

    def connect(self, store: Store, name: str, device: torch.device, timeout: timedelta = TIMEOUT) -> None:
        """Meet the others of this group at `store`, under its `name`; all of them call this. Raises RuntimeError if they
        do not come in time."""
        if self.size > 1:
            self._backend = open_backend(PrefixStore(name, store), self.rank, self.size, device, timeout)

    @property
    def backend(self) -> Backend:
        assert self._backend is not None, "the group is connected before tensors are exchanged"
        return self._backend

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        self.backend.allreduce([x]).wait()
        return x

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What all ranks have, in order, each shaped like `x`: for rank 0; others get nothing."""
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else []
        self.backend.gather([parts] if parts else [], [x], options).wait()
        return parts

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's `x`, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        self.backend.broadcast([x], options).wait()
        return x


class Pipe:
    """Hidden states from one stage to the next, in the order of steps; `group` has one rank of each stage."""

    def __init__(self, group: Group, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._group = group
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        self._sending: deque[tuple[dist.Work, torch.Tensor]] = deque()

    def receive(self, num_tokens: int) -> torch.Tensor:
        """(num_tokens, hidden_size) from the stage before this one."""
        x = torch.empty((num_tokens, self._hidden_size), dtype=self._dtype, device=self._device)
        self._group.backend.recv([x], self._group.rank - 1, 0).wait()
        return x

    def send(self, x: torch.Tensor) -> torch.Tensor:
        """Hand `x` (T, hidden_size) to the stage after this one, and go on before it has been taken."""
        while self._sending and (
            self._sending[0][0].is_completed() or len(self._sending) >= self._group.size
        ):
            self._sending.popleft()[0].wait()
        self._sending.append((self._group.backend.send([x], self._group.rank + 1, 0), x))
        return x


def open_store(path: str, num_ranks: int) -> Store:
    """Where ranks find each other: a file that only this user can read."""
    torch_distributed: Any = dist
    return cast(Store, torch_distributed.FileStore(path, num_ranks))


def open_backend(store: Store, rank: int, size: int, device: torch.device, timeout: timedelta) -> Backend:
    # torch.distributed is Any here: which back ends it has depends on how torch was built.
    torch_distributed: Any = dist
    if device.type == "cuda":
        options = torch_distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return cast(Backend, torch_distributed.ProcessGroupNCCL(store, rank, size, options))
    gloo = torch_distributed.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timeout
    # Else it listens on whatever interface the host's name resolves to.
    options._devices = [gloo.create_device(hostname=LOOPBACK)]
    return cast(Backend, gloo(store, rank, size, options))
