"""What speculation gains and what it costs: `python -m tools.bench.speculation --model DIR` (or the embedded model).

Two real servers, one with `--speculative-config` and one without, get the same load in turns. A line per workload and
number of requests at once gives output tokens per second of both, the median of the rounds' ratios with the lowest and
the highest, what share of the drafts was accepted, and how many tokens a draft brought.

With `--model` the weights are made for the purpose, in that checkpoint's shape (copying_model.py): `copy` repeats a
text that stands in the prompt, `edit` one of which every tenth token differs, and `noise` draws tokens of all the
vocabulary, so that nothing ever repeats. Without it the embedded model answers held-out questions of its own kinds:
`copy` and `extract`; `predict` is copy with the answer given as `prediction`; `noise` is stories at temperature 1.5.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import numpy as np
from penstock.server.client.http import HttpClient, Response

from ..demo_model.text import held_out_questions
from . import copying_model

READY = re.compile(r"ready: (http://\S+)")
START_LIMIT_S = 300.0
COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
NAME = "bench"


@dataclass(frozen=True)
class Workload:
    """Bodies of requests to one path, as many as there may be."""

    name: str
    path: str
    bodies: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One load on one server."""

    tokens_per_s: float
    drafts: int
    drafted: int
    accepted: int


@dataclass
class Server:
    """One with or without speculation; `answers` are whole ones, so that the client takes little of the machine."""

    url: str

    def run(self, workload: Workload, concurrency: int, bodies: list[dict[str, Any]]) -> Run:
        before = self.counters()
        began = time.perf_counter()
        tokens = asyncio.run(self._send(workload.path, concurrency, bodies))
        seconds = time.perf_counter() - began
        counts = [now - then for now, then in zip(self.counters(), before, strict=True)]
        return Run(tokens / seconds, *map(int, counts))

    async def _send(self, path: str, concurrency: int, bodies: list[dict[str, Any]]) -> int:
        client, waiting, tokens = HttpClient(self.url), iter(bodies), 0

        async def stream() -> None:
            nonlocal tokens
            for body in waiting:
                response = Response()
                content = msgspec.json.encode({"model": NAME, **body})
                await client.exchange(client.encode("POST", path, content), response)
                if response.status != 200:
                    raise SystemExit(f"the server answered {response.status}: {bytes(response.body)!r}")
                tokens += json.loads(bytes(response.body))["usage"]["completion_tokens"]

        await asyncio.gather(*(stream() for _ in range(concurrency)))
        return tokens

    def counters(self) -> list[float]:
        """The engine reports once a second: wait for the report that has what just ended."""
        time.sleep(1.2)
        text = urlopen(f"{self.url}/metrics").read().decode()
        found = [
            re.search(rf"^vllm:spec_decode_{name}_total\{{.*\}} (\S+)$", text, re.M) for name in COUNTERS
        ]
        return [float(match[1]) if match else 0.0 for match in found]


@contextmanager
def served(model: Path | None, arguments: list[str], log: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "penstock", "serve", *([str(model)] if model else []), "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--served-model-name", NAME, *arguments], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not (match := READY.search(log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield Server(match[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


# ------------------------------------------------------------------------------------------------------------ workloads


def made(following: np.ndarray, args: argparse.Namespace) -> Iterator[Workload]:
    rng = np.random.default_rng(args.seed)

    def bodies(edits: float, **fields: Any) -> list[dict[str, Any]]:
        common = {"max_tokens": args.tokens, "ignore_eos": True, **fields}
        return [
            {"prompt": copying_model.prompt(following, args.prompt, edits=edits, rng=rng), **common}
            for _ in range(args.stock)
        ]

    yield Workload("copy", COMPLETIONS, bodies(0.0, temperature=0))
    yield Workload("edit", COMPLETIONS, bodies(0.1, temperature=0))
    yield Workload("noise", COMPLETIONS, bodies(0.0, temperature=100))


def embedded(args: argparse.Namespace) -> Iterator[Workload]:
    def bodies(kind: str, **fields: Any) -> list[dict[str, Any]]:
        questions = held_out_questions(kind, args.stock, args.seed)
        common = {"max_tokens": args.tokens, "temperature": 0, **fields}
        return [{"messages": question.last.messages[:-1], **common} for question in questions]

    copies = bodies("copying")
    answers = [
        question.last.messages[-1] for question in held_out_questions("copying", args.stock, args.seed)
    ]
    yield Workload("copy", CHAT, copies)
    yield Workload("extract", CHAT, bodies("extraction"))
    predictions = [{"type": "content", "content": answer["content"]} for answer in answers]
    expecting = [{**body, "prediction": p} for body, p in zip(copies, predictions, strict=True)]
    yield Workload("predict", CHAT, expecting)
    yield Workload("noise", CHAT, bodies("stories", temperature=1.5, ignore_eos=True))


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(
    workload: Workload, concurrency: int, plain: Server, drafting: Server, args: argparse.Namespace
) -> str:
    number = max(args.requests * concurrency, args.least)
    pairs: list[tuple[Run, Run]] = []
    for turn in range(args.rounds):
        begin = turn * number
        bodies = [workload.bodies[i % len(workload.bodies)] for i in range(begin, begin + number)]
        for body in bodies:
            body["seed"] = begin
        order = (plain, drafting) if turn % 2 else (drafting, plain)
        runs = {id(server): server.run(workload, concurrency, bodies) for server in order}
        pairs.append((runs[id(plain)], runs[id(drafting)]))
    ratios = [on.tokens_per_s / off.tokens_per_s for off, on in pairs]
    off_s, on_s = (statistics.median(pair[side].tokens_per_s for pair in pairs) for side in (0, 1))
    drafts, drafted, accepted = (
        sum(getattr(on, name) for _, on in pairs) for name in ("drafts", "drafted", "accepted")
    )
    share = f"{100 * accepted / drafted:.0f} %" if drafted else "-"
    length = f"{1 + accepted / drafts:.2f}" if drafts else "-"
    return (
        f"{workload.name:8} {concurrency:4} {off_s:9.1f} {on_s:9.1f} {statistics.median(ratios):7.2f} "
        f"{min(ratios):6.2f} {max(ratios):6.2f} {share:>9} {length:>7} {drafted:8}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="folder of the checkpoint that gives the shape; embedded model"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="+", help="only these")
    parser.add_argument("--prompt", type=int, default=160, help="tokens of a made prompt")
    parser.add_argument("--tokens", type=int, default=96, help="most tokens of an answer")
    parser.add_argument("--requests", type=int, default=1, help="of each stream in a turn")
    parser.add_argument("--least", type=int, default=2, help="requests of a turn")
    parser.add_argument("--config", default='{"method": "ngram", "num_speculative_tokens": 7}')
    parser.add_argument(
        "--serve", nargs="*", default=[], help="more arguments of both servers, without dashes"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.stock = args.rounds * max(args.least, args.requests * max(args.concurrency))
    more = [f"--{argument}" for argument in args.serve]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model: Path | None = None
        if args.model is None:
            workloads = list(embedded(args))
        else:
            model = folder / "model"
            workloads = list(made(copying_model.make(args.model, model), args))
        plain = stack.enter_context(served(model, more, folder / "plain.txt"))
        drafting = stack.enter_context(
            served(model, [*more, "--speculative-config", args.config], folder / "drafting.txt")
        )
        print(args.config, flush=True)
        print("workload    c off tok/s  on tok/s   ratio lowest highest  accepted  length  drafted")
        for workload in workloads:
            if args.workloads and workload.name not in args.workloads:
                continue
            for server in (plain, drafting):  # both warm, and what steps cost is learnt
                server.run(workload, 2, workload.bodies[:2])
            for concurrency in args.concurrency:
                print(measure(workload, concurrency, plain, drafting, args), flush=True)


if __name__ == "__main__":
    main()
