"""How much CPU and memory the process family uses, read from /proc when somebody asks."""

from __future__ import annotations

import os
import time
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class FamilyUsage:
    """The family is the process `root` and all that descends from it."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._last_cpu_s = 0.0
        self._last_time = time.monotonic()

    def read(self) -> tuple[float, int]:
        """(cores in use since the last call, resident bytes now)."""
        cpu_s, resident = 0.0, 0
        for pid in family(self._root):
            try:
                # Fields behind the command's closing bracket: 11 and 12 are user and system time, 21 resident pages.
                fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            cpu_s += (int(fields[11]) + int(fields[12])) / TICKS
            resident += int(fields[21]) * PAGE_BYTES
        now = time.monotonic()
        cores = max(0.0, cpu_s - self._last_cpu_s) / max(now - self._last_time, 1e-3)
        self._last_cpu_s, self._last_time = cpu_s, now
        return cores, resident


def family(root: int) -> list[int]:
    """`root` and its descendants."""
    found = [root]
    for pid in found:
        try:
            for path in (PROC / str(pid) / "task").glob("*/children"):
                found += [int(child) for child in path.read_text().split()]
        except OSError:
            continue
    return found
