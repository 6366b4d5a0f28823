"""What the device itself can do: how fast it copies memory and multiplies matrices, measured, not looked up."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

WARM_UP = 3
REPEATS = 11


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written a second by a copy of `num_bytes`; to mean memory they must be far more than caches hold."""
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, size: int) -> float:
    """Floating-point operations a second of a square bfloat16 product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device)


def median_seconds(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    for _ in range(WARM_UP):
        work()
    if device.type == "cuda":
        pairs = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            for _ in range(REPEATS)
        ]
        for begin, end in pairs:
            begin.record()
            work()
            end.record()
        torch.cuda.synchronize()
        times = [float(begin.elapsed_time(end)) / 1e3 for begin, end in pairs]
    else:
        times = []
        for _ in range(REPEATS):
            before = time.perf_counter()
            work()
            times.append(time.perf_counter() - before)
    return sorted(times)[len(times) // 2]
