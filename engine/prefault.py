"""Commits KV pages of the host before they are needed, so that no request pays for the kernel's zeroing of memory.

A KV pool on a CPU is committed as it is touched. The first touch of a huge page costs milliseconds in a virtual
machine, and with one per layer, keys and values, a step that crosses into fresh memory would stall. A thread of lowest
priority keeps
`AHEAD_TOKENS` of the pool committed beyond the highest page in use; memory far beyond that is never taken.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Sequence

import torch

log = logging.getLogger(__name__)

AHEAD_TOKENS = 16_384
CHUNK_BYTES = 2 << 20  # of one tensor at a time: what a waiting engine may lose to it
MADV_POPULATE_WRITE = 23  # Linux 5.14; commits without changing what is there
LOWEST_PRIORITY = 19


class Prefault:
    """For one KV group on the host. `tensors` have pages as their first dimension; page ids are used from 0 up.
    There are none in a stage of a pipeline that has no layer of the group."""

    def __init__(self, tensors: Sequence[torch.Tensor], page_size: int) -> None:
        self._num_pages = len(tensors[0]) if tensors else 0
        self._starts = [tensor.data_ptr() for tensor in tensors]
        self._page_bytes = [tensor[0].nbytes for tensor in tensors]
        self._ahead = -(-AHEAD_TOKENS // page_size)
        self._chunk = max(1, CHUNK_BYTES // max(self._page_bytes, default=CHUNK_BYTES))
        self._target = 0
        self.num_committed = 0  # pages below this are committed
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="prefault", daemon=True)
        self._thread.start()
        self.reach(0)

    def reach(self, page: int) -> None:
        """`page` is in use now."""
        target = min(self._num_pages, page + self._ahead)
        # By half of what is kept ahead: the thread is woken seldom.
        if target > self._target and (target == self._num_pages or target - self._target >= self._ahead // 2):
            with self._changed:
                self._target = target
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        alignment = os.sysconf("SC_PAGE_SIZE")
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self.num_committed < self._target)
                if self._stopping:
                    return
            last = min(self._num_pages, self.num_committed + self._chunk)
            for start, page_bytes in zip(self._starts, self._page_bytes, strict=True):
                begin = start + self.num_committed * page_bytes
                begin -= begin % alignment
                if libc.madvise(begin, start + last * page_bytes - begin, MADV_POPULATE_WRITE) != 0:
                    log.debug(
                        "KV pages are committed as they are touched: %s", os.strerror(ctypes.get_errno())
                    )
                    return
            self.num_committed = last
