"""CPU time of a process, read from /proc."""

from __future__ import annotations

from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """Of all threads that live, by the scheduler's own clock (nanoseconds; /proc/PID/stat counts in ticks)."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(path.read_text().split()[0])
    return total * 1e-9
