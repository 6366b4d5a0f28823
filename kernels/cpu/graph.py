"""A forward pass as the list of its kernel calls: recorded once, then run by one C call without Python in between.

What CUDA graphs are to a GPU. While a recording runs, the kernels do their work as ever and each call is written down
with its arguments. That stands for the whole pass only if nothing else touched data, so every other tensor operation
than a view is refused, and only if the addresses stay good, so what the pass allocates comes out of an arena that
outlives the recording; blocks are used again within a pass as their tensors die, exactly as malloc would.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..interface import NotRecordable
from .library import Call, Library

ALIGNMENT = 64
BLOCK_BYTES = 4 << 20  # the least that the arena grows by
MAX_ARGUMENTS = 23  # kMaxArguments of graph.h

Bytes = npt.NDArray[np.uint8]


class CpuRecorder:
    """Records passes over one library. Its recordings share memory: run one, use its result, then run another."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._blocks: list[Bytes] = []

    def record(self, work: Callable[[], torch.Tensor]) -> CpuGraph:
        """Do `work` and keep the calls it makes.

        Raises:
            NotRecordable: it did something to a tensor that is no kernel of ours.
        """
        calls = self._library.start_recording()
        try:
            with Allocations(self._blocks):
                result = work()
        finally:
            self._library.stop_recording()
        return CpuGraph(self._library, calls, result)


class CpuGraph:
    """One recording."""

    def __init__(self, library: Library, calls: Sequence[Call], result: torch.Tensor) -> None:
        self.num_calls = len(calls)
        self.result = result
        self._run = library.long["graph_run"]
        self._words = np.array([words_of(call) for call in calls], np.int64)  # struct RecordedCall of graph.h
        self._at = self._words.ctypes.data

    def replay(self) -> torch.Tensor:
        """Do it again on what its inputs hold now: the tensor that `work` returned, until the next replay of any."""
        self._run(self._at, self.num_calls)
        return self.result


def words_of(call: Call) -> list[int]:
    """The 64-bit words that graph.h reads a call from."""
    invoke, arguments = call
    assert len(arguments) <= MAX_ARGUMENTS
    words = [invoke, *map(word_of, arguments)]
    return words + [0] * (1 + MAX_ARGUMENTS - len(words))


def word_of(argument: float | None) -> int:
    """Pointers and integers as they are, a float's bits in the low half."""
    if argument is None:
        return 0
    if isinstance(argument, float):
        return int.from_bytes(struct.pack("<f", argument), "little")
    return argument


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """New tensors lie in `blocks` (which grows as need be), views pass, everything else raises NotRecordable."""

    def __init__(self, blocks: list[Bytes]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._blocks = blocks
        self._free = [(index, 0, len(block)) for index, block in enumerate(blocks)]  # (block, begin, end)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No, nothing compiles here: torch would import its compiler, which takes seconds, only to switch it off."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        match func.overloadpacket:
            case torch.ops.aten.empty:
                return self._empty(args[0], kwargs.get("dtype") or torch.get_default_dtype())
            case torch.ops.aten.empty_like:
                return self._empty(args[0].shape, kwargs.get("dtype") or args[0].dtype)
        returned = func._schema.returns
        if returned and all(
            each.alias_info is not None and not each.alias_info.is_write for each in returned
        ):
            result = func(*args, **kwargs)
            if storages(result) <= storages(args):  # some are views or copies, as it comes
                return result
        raise NotRecordable(f"{func} is not a kernel that can be recorded")

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        taken = self._take(-(-size // ALIGNMENT) * ALIGNMENT)
        # The tensor's storage holds the array, so the array dies with the last tensor that looks into it.
        return torch.from_numpy(taken)[:size].view(dtype).view(*shape)

    def _take(self, size: int) -> Bytes:
        for at, (index, begin, end) in enumerate(self._free):
            if end - begin >= size:
                self._free[at] = (index, begin + size, end)
                break
        else:
            index, begin = len(self._blocks), 0
            self._blocks.append(aligned_block(max(size, BLOCK_BYTES)))
            self._free.append((index, size, len(self._blocks[index])))
        taken = self._blocks[index][begin : begin + size]
        weakref.finalize(taken, self._give_back, index, begin, begin + size)
        return taken

    def _give_back(self, index: int, begin: int, end: int) -> None:
        """Join the piece with its free neighbours; the lowest free piece that is large enough is taken first."""
        merged = []
        for block, low, high in self._free:
            if block == index and high == begin:
                begin = low
            elif block == index and low == end:
                end = high
            elif low < high:
                merged.append((block, low, high))
        self._free = sorted([*merged, (index, begin, end)])


def storages(values: Any) -> set[int]:
    """Where the tensors among `values`, at any depth, have their memory."""
    return {
        each.untyped_storage().data_ptr() for each in tree_leaves(values) if isinstance(each, torch.Tensor)
    }


def aligned_block(size: int) -> Bytes:
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size]
