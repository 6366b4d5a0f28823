"""`python -m penstock.engine.bench CONFIG.json`: measure one model on one device, a JSON object a line on stdout.

Every line has `measure` and what that measured, or `failed` (one line) or `skipped` (why). Lines come as soon as there
is something to say, the most valuable first; `deadline_s` after the start nothing new is begun.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import torch

from ...scheduler.messages import EngineConfig
from ..build import Built, create_runner
from .ceilings import copy_bandwidth, matmul_rate
from .loop import NotEnoughPages, decode, prefill, throughput
from .machine import machine
from .profile import host_gap

Figures: TypeAlias = dict[str, Any]


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing to measure; the fields that `measure` does not need are 0.

    decode: `batch` requests with `tokens` of context each, `steps` steps. prefill: `tokens` of prompt, `steps` times.
    host_gap: as decode. loop: `batch` requests at a time of `tokens` in and `output` out, `requests` in all.
    """

    measure: str
    batch: int = 0
    tokens: int = 0
    output: int = 0
    steps: int = 0
    requests: int = 0


class BenchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the process is told. `engine` None: only the machine and its ceilings are looked at."""

    device: str
    engine: EngineConfig | None = None
    wanted: list[Measurement] = []
    deadline_s: float
    copy_bytes: int = 1 << 31
    matmul_size: int = 8192


def say(figures: Figures) -> None:
    print(msgspec.json.encode(figures).decode(), flush=True)


def attempt(what: Figures, work: Callable[[], Figures]) -> None:
    """Say what came of it: one measurement that fails must not take the others along."""
    try:
        say({**what, **work()})
    except NotEnoughPages as error:
        say({**what, "skipped": str(error)})
    except Exception as error:  # a kernel may raise anything, and the next one may be sound
        lines = str(error).strip().splitlines() or [""]
        say({**what, "failed": f"{type(error).__name__}: {lines[0][:300]}"})


def measure(built: Built, wanted: Measurement, device: torch.device) -> Figures:
    match wanted.measure:
        case "decode":
            return decode(built, wanted.batch, wanted.tokens, wanted.steps)
        case "prefill":
            return prefill(built, wanted.tokens, wanted.steps)
        case "host_gap":
            if device.type != "cuda":
                return {"skipped": "only a CUDA device has a timeline of its own"}
            return host_gap(built, wanted.batch, wanted.tokens, wanted.steps)
        case "loop":
            return throughput(built, wanted.batch, wanted.requests, wanted.tokens, wanted.output)
    raise ValueError(f"measure {wanted.measure}: unknown; choose decode, prefill, host_gap or loop")


def run(config: BenchConfig) -> None:
    began = time.monotonic()
    device = torch.device(config.device)
    if config.engine is None:
        attempt({"measure": "machine"}, lambda: machine(device))
        attempt({"measure": "copy"}, lambda: {"bytes_per_s": copy_bandwidth(device, config.copy_bytes)})
        attempt({"measure": "matmul"}, lambda: {"flop_per_s": matmul_rate(device, config.matmul_size)})
        return
    built = create_runner(config.engine)
    say({"measure": "engine", "info": msgspec.to_builtins(built.info)})
    gc.collect()
    gc.freeze()
    try:
        for wanted in config.wanted:
            what = {key: value for key, value in msgspec.to_builtins(wanted).items() if value}
            if time.monotonic() - began > config.deadline_s:
                say({**what, "skipped": "out of time"})
                continue
            attempt(what, lambda wanted=wanted: measure(built, wanted, device))  # type: ignore[misc]
    finally:
        built.runner.close()


def main() -> None:
    run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=BenchConfig))


if __name__ == "__main__":
    main()
