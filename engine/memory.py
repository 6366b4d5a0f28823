"""What a device's memory goes to: weights, activations, recordings, and KV pages in what is left.

Pages come last, so all else is measured first: activations by running the largest step there can be, recordings by
making the two largest of them and giving them back. Neither needs pages yet: every row reads and writes one scratch page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from .errors import ConfigurationError
from .kv_pool import gib

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryAccount:
    """Bytes of one device. `free` is what nobody has taken once the weights are loaded; `utilization` is the share of
    `total` that may be in use at all, by whomever."""

    total: int
    free: int
    weights: int
    activations: int  # of the largest step, with what libraries take beside it
    graphs: int
    utilization: float

    @property
    def spare(self) -> int:
        """What is to stay free."""
        return int((1 - self.utilization) * self.total)

    @property
    def kv_cache(self) -> int:
        """What is left for KV pages.

        Raises:
            ConfigurationError: nothing is.
        """
        left = self.free - self.spare - self.activations - self.graphs
        if left <= 0:
            raise ConfigurationError(
                f"no memory is left for the KV cache: of {gib(self.total)} {self.described()}: raise "
                "--gpu-memory-utilization, lower --max-num-batched-tokens or --max-num-seqs, or end what else runs there"
            )
        return left

    def as_bytes(self) -> dict[str, int]:
        return {
            "total": self.total,
            "weights": self.weights,
            "activations": self.activations,
            "graphs": self.graphs,
        }

    def described(self) -> str:
        others = self.total - self.free - self.weights
        return (
            f"weights take {gib(self.weights)}, activations {gib(self.activations)}, graphs {gib(self.graphs)}, others "
            f"{gib(max(0, others))}, and {gib(self.spare)} stay free (--gpu-memory-utilization {self.utilization:g})"
        )


class Meter(Protocol):
    """Reads a device's memory; bytes."""

    def total(self) -> int:
        """All there is."""

    def free(self) -> int:
        """What nobody has taken."""

    def reset_peak(self) -> None:
        """`peak` counts from here on."""

    def peak(self) -> int:
        """The most that tensors took at once beyond what they took at `reset_peak`."""

    def release(self) -> None:
        """Give back what is kept for tensors to come."""


class CudaMeter:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def total(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[1])

    def free(self) -> int:
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.mem_get_info(self._device)[0])

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) - self._before

    def release(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()


def take_account(
    meter: Meter,
    *,
    weights: int,
    utilization: float,
    largest_step: Callable[[], None],
    capture: Callable[[int], bool],
    sizes: Sequence[int],
    release: Callable[[], None],
) -> MemoryAccount:
    """Measure what a runner of these `weights` (bytes) needs beside its pages.

    `largest_step` runs the largest step; `capture` records decodes of a size, largest first, and says whether that can
    be done; `release` drops what was recorded. Raises ConfigurationError when the largest step finds no memory.
    """
    meter.release()
    free = meter.free()
    meter.reset_peak()
    try:
        largest_step()
    except torch.OutOfMemoryError:
        raise ConfigurationError(
            f"the largest step does not fit beside {gib(weights)} of weights, {gib(free)} were free: lower "
            "--max-num-batched-tokens or --max-num-seqs"
        ) from None
    # What the allocator took from the device says more than what tensors had, unless it had it already.
    activations = max(meter.peak(), free - meter.free())
    graphs = measure_graphs(meter, capture, sizes)
    release()
    meter.release()
    account = MemoryAccount(
        total=meter.total(),
        free=free,
        weights=weights,
        activations=activations,
        graphs=graphs,
        utilization=utilization,
    )
    log.info("memory: %s", account.described())
    return account


def measure_graphs(meter: Meter, capture: Callable[[int], bool], sizes: Sequence[int]) -> int:
    """Bytes that recordings of all `sizes` will take. The largest brings the memory that all work in; what the second
    takes beyond is what each of the others does."""
    taken: list[int] = []
    for size in sorted(sizes, reverse=True)[:2]:
        before = meter.free()
        if not capture(size):
            return 0
        taken.append(max(0, before - meter.free()))
    return sum(taken[:1]) + sum(taken[1:]) * (len(sizes) - 1)
