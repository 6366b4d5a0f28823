"""Host memory: how much of it may be used, and large zeroed blocks of it that cost nothing until they are touched."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A zeroed CPU tensor whose pages the kernel commits on first touch, huge pages where it can.

    torch.zeros would write, and so commit, all of a KV pool that may never be filled.
    """
    count = math.prod(shape)
    if count == 0:
        return torch.zeros(*shape, dtype=dtype)
    block = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=dtype).view(*shape)


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory this process can still take: what the machine has available, or what is left of its cgroup's limit."""
    available = 0
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    try:
        limit = (cgroups / "memory.max").read_text().strip()
        used = int((cgroups / "memory.current").read_text())
        # Page cache is charged to the group and given up under pressure.
        fields = dict(line.split() for line in (cgroups / "memory.stat").read_text().splitlines())
        reclaimable = int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used + reclaimable)
