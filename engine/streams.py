"""How arrays get to the device and back: `Stream`, at once on a CPU, in order but later on a device of its own.

A step on an asynchronous device is only enqueued: its index arrays go in one copy out of pinned memory, its results
come in one copy into pinned memory, and an event says when. Whoever wants the results waits for the event, which is
nobody on the device's thread. The streams are written against `Driver`, so that a test can be the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from .host_memory import lazy_zeros

Array: TypeAlias = npt.NDArray[Any]

ALIGNMENT = 64  # bytes; of every array in a staging buffer
RING = 8  # staging buffers: more than two steps in flight take
FIRST_BYTES = 64 << 10
POLL_S = 50e-6
DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.bool_): torch.bool,
}


class Fetch(Protocol):
    """Results on their way to the host; any thread may ask for them."""

    def wait(self, timeout_s: float) -> bool:
        """Whether they are there, after at most `timeout_s`."""

    def arrays(self) -> list[Array]:
        """They, waited for; raises what went wrong on the device."""


class Timer(Protocol):
    """Measures the device's time of what is enqueued between its making and `stop`."""

    def stop(self) -> None:
        """Here what is measured ends."""

    def seconds(self) -> float:
        """How long it took; waits for the end of it."""


class Event(Protocol):
    """A place in the order of the device's work."""

    def record(self) -> None:
        """It is here from now on, behind all that is enqueued."""

    def done(self) -> bool:
        """Whether the device has come by."""

    def wait(self) -> None:
        """Until the device has come by."""

    def seconds_since(self, earlier: Any) -> float:
        """Between the times at which the device came by `earlier` (of the same kind) and here."""


class Driver(Protocol):
    """An asynchronous device: what is enqueued is done in order, later."""

    device: torch.device

    def pinned(self, num_bytes: int) -> torch.Tensor:
        """uint8 (num_bytes,) of host memory that the device can reach while the host goes on."""

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Enqueue a copy between pinned memory and the device."""

    def event(self) -> Event:
        """One that is recorded nowhere yet, and done."""


class Stream(Protocol):
    """The device's thread owns it. `runs_ahead`: work is enqueued and done later."""

    runs_ahead: bool

    def stage(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        """The arrays on the device, for the step that is being enqueued; on a CPU they are the arrays' own memory."""

    def keep(self, array: Array) -> torch.Tensor:
        """An array on the device, for as long as it is wanted; on a CPU it is the array's own memory."""

    def fetch(self, tensors: Sequence[torch.Tensor]) -> Fetch:
        """Start to copy results to the host."""

    def timer(self) -> Timer:
        """One that measures from here on."""

    def host_zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Zeroed host memory for `send`."""

    def send(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Event | None]:
        """A part of what `host_zeros` gave, on the device, and after which event (None: now, if the device does not
        use the same memory) the host may write to it again."""


# ---------------------------------------------------------------------------------------------------- synchronous


class HostFetch:
    """Results of a device that is the host."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: list[Array]) -> None:
        self._arrays = arrays

    def wait(self, timeout_s: float) -> bool:
        return True

    def arrays(self) -> list[Array]:
        return self._arrays


class HostTimer:
    __slots__ = ("_begin",)

    def __init__(self) -> None:
        self._begin = time.perf_counter()

    def stop(self) -> None:
        """What is enqueued is done: the time runs until somebody asks."""

    def seconds(self) -> float:
        return time.perf_counter() - self._begin


class HostStream:
    """The device is the host: nothing is copied, nothing is late."""

    runs_ahead = False

    def stage(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    def keep(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array)

    def fetch(self, tensors: Sequence[torch.Tensor]) -> HostFetch:
        return HostFetch([tensor.numpy() for tensor in tensors])

    def timer(self) -> HostTimer:
        return HostTimer()

    def host_zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return lazy_zeros(shape, dtype)

    def send(self, tensor: torch.Tensor) -> tuple[torch.Tensor, None]:
        return tensor, None


# ---------------------------------------------------------------------------------------------------- asynchronous


@dataclass(slots=True)
class StagingBuffer:
    """One buffer of the ring: pinned memory, its place on the device, and when the copy between them is over."""

    pinned: torch.Tensor
    host: npt.NDArray[np.uint8]  # the same memory
    device: torch.Tensor
    copied: Event
    views: list[tuple[tuple[int, torch.dtype, tuple[int, ...]], torch.Tensor]] = field(default_factory=list)

    def view(self, index: int, offset: int, array: Array) -> torch.Tensor:
        """The index-th array of this use, at `offset`. Steps repeat their layout, so views are made once."""
        layout = (offset, DTYPES[array.dtype], array.shape)
        if index < len(self.views) and self.views[index][0] == layout:
            return self.views[index][1]
        view = self.device[offset : offset + array.nbytes].view(layout[1]).view(array.shape)
        self.views[index:] = [(layout, view)]
        return view


class AsyncFetch:
    """Results that are copied to pinned memory when the device comes to it."""

    __slots__ = ("_arrays", "_event")

    def __init__(self, arrays: list[Array], event: Event) -> None:
        self._arrays = arrays
        self._event = event

    def wait(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not self._event.done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, POLL_S))
        return True

    def arrays(self) -> list[Array]:
        self._event.wait()
        return self._arrays


class AsyncTimer:
    __slots__ = ("_begin", "_end")

    def __init__(self, driver: Driver) -> None:
        self._begin, self._end = driver.event(), driver.event()
        self._begin.record()

    def stop(self) -> None:
        self._end.record()

    def seconds(self) -> float:
        self._end.wait()
        return self._end.seconds_since(self._begin)


class AsyncStream:
    """Copies through a ring of pinned buffers and events; the host never waits for the device in it, unless it is a
    whole ring ahead. What was staged is good until `ring` more times something was."""

    runs_ahead = True

    def __init__(self, driver: Driver, ring: int = RING) -> None:
        self._driver = driver
        self._ring: list[StagingBuffer | None] = [None] * ring
        self._next = 0

    def stage(self, arrays: Sequence[Array]) -> list[torch.Tensor]:
        offsets: dict[int, int] = {}  # an array that comes twice goes once
        end = 0
        for array in arrays:
            if id(array) not in offsets:
                offsets[id(array)] = end
                end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        buffer = self._take(end)
        for array in {id(array): array for array in arrays}.values():
            begin = offsets[id(array)]
            flat = np.ascontiguousarray(array).reshape(-1)
            buffer.host[begin : begin + array.nbytes] = flat.view(np.uint8)
        if end:
            self._driver.copy(buffer.device[:end], buffer.pinned[:end])
            buffer.copied.record()
        return [buffer.view(index, offsets[id(array)], array) for index, array in enumerate(arrays)]

    def keep(self, array: Array) -> torch.Tensor:
        return self.stage([array])[0].clone()

    def fetch(self, tensors: Sequence[torch.Tensor]) -> AsyncFetch:
        sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        pinned = self._driver.pinned(sum(sizes))
        arrays, begin = [], 0
        for tensor, size in zip(tensors, sizes, strict=True):
            target = pinned[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            if tensor.nbytes:
                self._driver.copy(target, tensor)
            arrays.append(target.numpy())
            begin += size
        event = self._driver.event()
        event.record()
        return AsyncFetch(arrays, event)

    def timer(self) -> AsyncTimer:
        return AsyncTimer(self._driver)

    def host_zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self._driver.pinned(math.prod(shape) * dtype.itemsize).zero_().view(dtype).view(*shape)

    def send(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Event]:
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._driver.device)
        self._driver.copy(target, tensor)
        event = self._driver.event()
        event.record()
        return target, event

    def _take(self, num_bytes: int) -> StagingBuffer:
        """The next buffer of the ring, with room for `num_bytes`, once its last copy is over."""
        at, self._next = self._next, (self._next + 1) % len(self._ring)
        buffer = self._ring[at]
        if buffer is not None and not buffer.copied.done():
            buffer.copied.wait()
        if buffer is None or len(buffer.host) < num_bytes:
            size = max(FIRST_BYTES, 1 << (num_bytes - 1).bit_length() if num_bytes else 0)
            pinned = self._driver.pinned(size)
            device = torch.empty(size, dtype=torch.uint8, device=self._driver.device)
            buffer = self._ring[at] = StagingBuffer(pinned, pinned.numpy(), device, self._driver.event())
        return buffer


# --------------------------------------------------------------------------------------------------------- CUDA


class CudaEvent:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record(torch.cuda.current_stream(self._device))

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: CudaEvent) -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1000


class CudaDriver:
    """A CUDA device, on the stream that is current in the device's thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pinned(self, num_bytes: int) -> torch.Tensor:
        # torch's own cache of pinned blocks gives none out again while a copy to or from it is under way.
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def event(self) -> CudaEvent:
        return CudaEvent(self.device)


def open_stream(device: torch.device, ring: int = RING) -> Stream:
    """The stream of a device; if it has to copy, through so many buffers."""
    return HostStream() if device.type == "cpu" else AsyncStream(CudaDriver(device), ring)
