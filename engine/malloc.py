"""How glibc's malloc is told to keep the memory that every step needs again."""

from __future__ import annotations

import ctypes

# glibc's mallopt, <malloc.h>
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
LARGEST_MMAP_THRESHOLD = 32 << 20
NEVER_TRIM = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have malloc reuse the large blocks that activations need every step, in place of giving them back.

    By default glibc maps and unmaps blocks of this size, and each use pays for fresh page faults. One arena,
    because those of threads are bounded. To be called before threads start; False where malloc is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD), (M_TRIM_THRESHOLD, NEVER_TRIM))
    taken = [mallopt(option, value) == 1 for option, value in wanted]
    return all(taken)
