"""What drawing tokens and scoring them costs on a CPU: `python -m tools.bench.sampling`, `--help` for its options.

A line per vocabulary, number of rows, shape of the logits and kind of request: microseconds per row of the C++ kernels
and of plain torch on one thread, measured in turns, medians. `--threads 1` gives the kernels' work on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from penstock.kernels.cpu.library import load
from penstock.kernels.cpu.sampling import CpuSampling
from penstock.kernels.sampling.interface import Sampling, SamplingParameters
from penstock.kernels.sampling.reference import TorchSampling

SPREADS = {"flat": 0.5, "usual": 2.0, "peaked": 5.0}  # standard deviations of the logits


@dataclass(frozen=True)
class Kind:
    name: str
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def parameters(self) -> SamplingParameters:
        """All rows are of slot 0."""
        greedy = self.temperature == 0
        return SamplingParameters(
            temperature=torch.tensor([self.temperature]),
            top_k=torch.tensor([self.top_k], dtype=torch.int32),
            top_p=torch.tensor([self.top_p]),
            min_p=torch.tensor([self.min_p]),
            greedy=np.array([greedy]),
            truncated=np.array([not greedy and (self.top_k > 0 or self.top_p < 1)]),
        )


KINDS = (
    Kind("greedy", temperature=0.0),
    Kind("temperature"),
    Kind("top-p 0.9", top_p=0.9),
    Kind("top-k 50", top_k=50),
    Kind("top-k 2000", top_k=2_000),
    Kind("k 50, p 0.9, min-p 0.05", top_k=50, top_p=0.9, min_p=0.05),
)


def work(
    kernels: Sampling, kind: Kind | None, logits: torch.Tensor, uniform: np.ndarray
) -> Callable[[], object]:
    """One step's call: an argmax or a draw, or the scores of a row's token with 5 alternatives for None."""
    if kind is None:
        tokens = torch.zeros(len(logits), dtype=torch.int32)
        return lambda: kernels.score(logits, tokens, 5)
    if kind.temperature == 0:
        return lambda: kernels.argmax(logits)
    how, slots = kind.parameters(), np.zeros(len(logits), np.int32)
    return lambda: kernels.sample(logits, how, slots, uniform)


def in_turns(calls: list[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each, the calls taking turns for about `seconds` altogether."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < end:
        for call, mine in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            mine.append(time.perf_counter() - begin)
    return [float(np.median(mine)) for mine in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32768, 151936])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    library = load()
    if library is None:
        parser.error("the CPU kernels cannot be built here")
    torch.set_num_threads(1)  # as in an engine with these kernels: its waiting threads would hold their cores
    both: tuple[Sampling, Sampling] = (CpuSampling(library), TorchSampling())
    random = torch.Generator().manual_seed(0)
    print(f"{arguments.dtype}, {arguments.threads} threads; microseconds per row")
    print(f"{'vocab':>7} {'rows':>4} {'logits':7} {'kind':24} {'C++':>8} {'torch':>9} {'ratio':>6}")
    for vocab in arguments.vocab:
        for rows in arguments.rows:
            for shape, spread in SPREADS.items():
                logits = torch.randn(rows, vocab, generator=random).mul_(spread)
                logits = logits.to(getattr(torch, arguments.dtype))
                uniform = np.random.default_rng(0).random(rows)
                for kind in (*KINDS, None):
                    calls = [work(kernels, kind, logits, uniform) for kernels in both]
                    mine, theirs = (1e6 * t / rows for t in in_turns(calls, arguments.seconds))
                    name = "logprobs 5" if kind is None else kind.name
                    print(
                        f"{vocab:7} {rows:4} {shape:7} {name:24} {mine:8.1f} {theirs:9.1f} {theirs / mine:6.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
