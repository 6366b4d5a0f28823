"""KV pages are committed ahead of use, no further than told, and without changing what they hold."""

from __future__ import annotations

import ctypes
import mmap
import time

import pytest
import torch
from penstock.engine.host_memory import lazy_zeros
from penstock.engine.prefault import AHEAD_TOKENS, Prefault

PAGE_SIZE = 16
AHEAD_PAGES = AHEAD_TOKENS // PAGE_SIZE


def resident(tensor: torch.Tensor, first: int, last: int) -> int:
    """System pages of tensor[first:last] that are in memory."""
    start = tensor.data_ptr() + first * tensor[0].nbytes
    length = (last - first) * tensor[0].nbytes
    start -= start % mmap.PAGESIZE
    flags = (ctypes.c_ubyte * (-(-length // mmap.PAGESIZE)))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), flags) == 0
    return sum(flag & 1 for flag in flags)


def wait_for(prefault: Prefault, pages: int) -> None:
    deadline = time.monotonic() + 20
    while prefault.num_committed < pages:
        if not prefault._thread.is_alive():
            pytest.skip("this kernel has no MADV_POPULATE_WRITE")
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pages_ahead_of_use_are_committed_and_no_others() -> None:
    tensors = [lazy_zeros((6 * AHEAD_PAGES, PAGE_SIZE, 2, 32), torch.float32) for _ in range(2)]
    tensors[0][7] = 3.0
    prefault = Prefault(tensors, PAGE_SIZE)
    wait_for(prefault, AHEAD_PAGES)
    system_pages = AHEAD_PAGES * tensors[0][0].nbytes // mmap.PAGESIZE
    for tensor in tensors:
        assert resident(tensor, 0, AHEAD_PAGES) >= system_pages
        assert resident(tensor, 4 * AHEAD_PAGES, 6 * AHEAD_PAGES) == 0
    prefault.reach(2 * AHEAD_PAGES)
    wait_for(prefault, 3 * AHEAD_PAGES)
    assert resident(tensors[1], 2 * AHEAD_PAGES, 3 * AHEAD_PAGES) >= system_pages
    assert (tensors[0][7] == 3.0).all()
    prefault.close()


def test_a_small_pool_is_committed_whole() -> None:
    tensors = [lazy_zeros((10, PAGE_SIZE, 2, 8), torch.float32)]
    prefault = Prefault(tensors, PAGE_SIZE)
    wait_for(prefault, 10)
    prefault.close()
