"""What is measured, in order of worth: a machine that is lent for minutes may be gone before the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Wanted = dict[str, Any]  # a Measurement of `engine/bench/__main__.py`


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Output tokens a second of `requests` requests, `concurrency` at a time, through HTTP and beside it without."""

    concurrency: int
    requests: int
    input_len: int
    output_len: int

    @property
    def loop(self) -> Wanted:
        """The same without front end, sockets and tokenizer."""
        return {
            "measure": "loop",
            "batch": self.concurrency,
            "requests": self.requests,
            "tokens": self.input_len,
            "output": self.output_len,
        }


@dataclass(frozen=True, kw_only=True)
class Workload:
    models: tuple[str, ...]
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    copy_bytes: int
    matmul_size: int
    steps: list[Wanted] = field(default_factory=list)
    serving: list[Serving] = field(default_factory=list)


def decode(batch: int, tokens: int, steps: int) -> Wanted:
    return {"measure": "decode", "batch": batch, "tokens": tokens, "steps": steps}


def host_gap(batch: int, tokens: int, steps: int) -> Wanted:
    return {"measure": "host_gap", "batch": batch, "tokens": tokens, "steps": steps}


FULL = Workload(
    models=("llama-3.1-8b", "qwen3-0.6b"),
    max_model_len=9216,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    copy_bytes=1 << 31,
    matmul_size=8192,
    steps=[
        decode(1, 1024, 128),
        decode(256, 1024, 64),
        {"measure": "prefill", "tokens": 8192, "steps": 5},
        host_gap(256, 1024, 32),
        host_gap(1, 1024, 32),
        decode(32, 1024, 64),
        decode(8, 1024, 64),
        decode(128, 1024, 64),
        decode(1, 8192, 128),
        decode(32, 8192, 64),
        decode(8, 8192, 64),
        decode(128, 8192, 64),
        decode(256, 8192, 64),
    ],
    serving=[
        Serving(concurrency=256, requests=512, input_len=1024, output_len=256),
        Serving(concurrency=32, requests=64, input_len=1024, output_len=256),
        Serving(concurrency=1, requests=2, input_len=1024, output_len=256),
    ],
)

QUICK = Workload(
    models=("tiny",),
    max_model_len=256,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    copy_bytes=1 << 24,
    matmul_size=256,
    steps=[
        decode(1, 16, 8),
        decode(8, 16, 8),
        {"measure": "prefill", "tokens": 64, "steps": 2},
        host_gap(8, 16, 4),
        decode(8, 4096, 8),  # more than fits: what is left out must say so
    ],
    serving=[Serving(concurrency=4, requests=8, input_len=16, output_len=8)],
)
