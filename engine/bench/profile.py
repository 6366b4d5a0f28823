"""How long the device waits for the host between the kernels of decode steps, from a profile of its timeline.

A device that has nothing to do is idle either because the next kernel had been queued and was being started, or because
the host had not asked for it yet. Only the latter is the host's gap; profiles tell one from the other, since each
kernel bears the number of the call that launched it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch.profiler import ProfilerActivity, profile

from ..build import Built
from .loop import decoding

Figures: TypeAlias = dict[str, Any]
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
ON_HOST = {"cuda_runtime", "cuda_driver"}


@dataclass(frozen=True, slots=True)
class Idle:
    """Microseconds of a timeline from its first kernel to its last."""

    total_us: float
    idle_us: float
    host_us: float  # of the idle time: the next kernel had not been launched when the device became free
    longest_us: float  # gap that the host made
    num_kernels: int


def host_gap(built: Built, batch: int, context: int, steps: int) -> Figures:
    """Microseconds a step, over `steps` steps in which `batch` requests with `context` tokens decode."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench") as folder:
        path = Path(folder) / "trace.json"
        with decoding(built, batch, context, steps) as loop:
            with profile(activities=[ProfilerActivity.CUDA]) as recorded:
                for _ in range(steps):
                    loop.step()
            recorded.export_chrome_trace(str(path))
        found = idle(json.loads(path.read_bytes())["traceEvents"])
    if found is None:
        raise RuntimeError("the profile holds no kernels: is profiling allowed on this machine?")
    return {
        "host_gap_us": found.host_us / steps,
        "idle_us": found.idle_us / steps,
        "longest_gap_us": found.longest_us,
        "step_us": found.total_us / steps,
        "kernels": found.num_kernels / steps,
    }


def idle(events: Iterable[dict[str, Any]]) -> Idle | None:
    """From the events of a Chrome trace as torch.profiler writes it; None if nothing ran on a device."""
    launched: dict[int, float] = {}
    kernels: list[tuple[float, float, int]] = []
    for event in events:
        category, correlation = event.get("cat"), event.get("args", {}).get("correlation", -1)
        if category in ON_HOST:
            launched[correlation] = float(event["ts"])
        elif category in ON_DEVICE:
            kernels.append((float(event["ts"]), float(event["dur"]), correlation))
    if not kernels:
        return None
    kernels.sort()
    begin = free = kernels[0][0]
    idle_us = host_us = longest_us = 0.0
    for start, duration, correlation in kernels:
        gap = start - free
        if gap > 0:
            idle_us += gap
            if launched.get(correlation, start) > free:
                host_us += gap
                longest_us = max(longest_us, gap)
        free = max(free, start + duration)
    return Idle(free - begin, idle_us, host_us, longest_us, len(kernels))
