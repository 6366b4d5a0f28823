"""How fast linear layers are in bfloat16, int8 and int4: `python -m tools.bench.linear`.

The layers of one Qwen3-0.6B block and its output head, on the kernels' own threads. Few rows: gigabytes of weights read a
second, each call on other weights than the last ones, so that they come from memory. Many rows: billions of operations a
second. The formats take turns, each figure is the median of its rounds; `x` is the speed relative to bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from penstock.kernels.interface import Product
from penstock.kernels.quantization import Quantization, quantized_bytes
from penstock.kernels.select import select_ops

CPU = torch.device("cpu")
FORMATS = ("bf16", "int8", "int4")
# name: (out, in), gated
LAYERS = {
    "qkv": ((4096, 1024), False),
    "attention output": ((1024, 2048), False),
    "gate and up": ((6144, 1024), True),
    "down": ((1024, 3072), False),
    "output head": ((151936, 1024), False),
}
HEAD = "output head"
FEW_ROWS = (1, 2, 4, 8, 16)
MANY_ROWS = (64, 128, 512, 2048)
STREAMED_BYTES = 150 << 20  # of bfloat16 weights, several times a last-level cache


@dataclass(frozen=True)
class Layer:
    """Copies of one layer in one format; they are used in turn."""

    copies: Sequence[Product]
    num_bytes: int  # of one

    def seconds(self, x: torch.Tensor) -> float:
        """For one product with x, the mean of a pass over all copies."""
        begin = time.perf_counter()
        for linear in self.copies:
            linear(x)
        return (time.perf_counter() - begin) / len(self.copies)


def make(name: str, kind: str, count: int) -> Layer:
    """`count` copies of the layer under `name`, random weights."""
    (rows, width), gated = LAYERS[name]
    bits = {"bf16": 16, "int8": 8, "int4": 8 if name == HEAD else 4}[kind]
    ops = select_ops("cpu", CPU, None if kind == "bf16" else Quantization("int8" if bits == 8 else "int4"))
    weight = torch.randn(rows, width).mul_(0.03).bfloat16()
    prepare = ops.gated_linear if gated else ops.linear
    size = weight.nbytes if bits == 16 else quantized_bytes(weight.shape, bits)
    return Layer([prepare(weight.clone()) for _ in range(count)], size)


def measure(layers: dict[str, Layer], rows: int, rounds: int) -> dict[str, float]:
    """Seconds of one product in each format: the median of the rounds."""
    width = next(iter(layers.values())).copies[0].in_features
    x = torch.randn(rows, width).bfloat16()
    times: dict[str, list[float]] = {kind: [] for kind in layers}
    for _ in range(rounds + 1):
        for kind, layer in layers.items():
            times[kind].append(layer.seconds(x))
    return {kind: statistics.median(each[1:]) for kind, each in times.items()}  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", nargs="*", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--rows", nargs="*", type=int, default=[*FEW_ROWS, *MANY_ROWS])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for name in args.layers:
        (out, width), _ = LAYERS[name]
        count = max(1, STREAMED_BYTES // (2 * out * width))
        layers = {kind: make(name, kind, count) for kind in FORMATS}
        print(f"{name}: {out} x {width}, {args.threads} threads")
        for rows in args.rows:
            if name == HEAD and rows > max(FEW_ROWS):
                continue  # a head sees the rows that are sampled
            seconds = measure(layers, rows, args.rounds)
            figures = []
            for kind, layer in layers.items():
                took = seconds[kind]
                rate = (
                    f"{layer.num_bytes / took / 1e9:6.1f} GB/s"
                    if rows <= max(FEW_ROWS)
                    else f"{2e-9 * rows * out * width / took:6.0f} GFLOP/s"
                )
                figures.append(f"{kind} {took * 1e6:9.0f} us {rate} x{seconds['bf16'] / took:4.2f}")
            print(f"  {rows:5} rows   " + "   ".join(figures), flush=True)


if __name__ == "__main__":
    main()
