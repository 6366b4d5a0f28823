"""What a streamed token costs in the front end: `python -m tools.bench.front_end`.

A real front-end process serves N streams over real sockets; this process is its engine and its clients. Step for step
the engine sends one token of every stream, and the next step follows when every client has its event. A line per
number of streams gives the CPU time of the front-end process per token (microseconds, all threads, kernel included),
the time from a step's message to the last client's event, and the event loop's lag from the process's own metric.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import penstock.server
import zmq
from penstock.scheduler.messages import (
    EngineInfo,
    EngineStatus,
    Finish,
    FirstToken,
    StepOutput,
    Submit,
    decode_to_engine,
    encode,
)
from penstock.server.frontend_config import FrontEndConfig
from tokenizers import Tokenizer

from .processes import cpu_seconds

MODEL_DIR = Path(penstock.server.__file__).parent / "demo_model"
MODEL = "bench"
EVENT = b"data: "
WARM_UP_S = 1.5  # the front end samples its lag finely from the second after the first request on
PATIENCE_S = 30.0
LAG = "penstock:event_loop_lag_seconds"
BODIES = {
    "completions": ("/v1/completions", {"prompt": "Once upon a time"}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
}


class Engine:
    """The engine's end of the link: requests in, one token each out."""

    def __init__(self, endpoint: str, words: list[int], vocab_size: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, b"engine:0:1")
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self._socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        self._socket.connect(endpoint)
        self._words = words
        self._vocab_size = vocab_size
        self._sent = 0
        self._ids = np.zeros(0, "<u4")

    def greet(self) -> None:
        """Until the front end has answered."""
        self._send_status()
        decode_to_engine(self._socket.recv())
        self._send_status()

    def _send_status(self) -> None:
        info = EngineInfo(
            max_model_len=1 << 20,
            vocab_size=self._vocab_size,
            page_size=16,
            num_pages=1,
            max_num_seqs=1024,
            max_num_batched_tokens=2048,
            max_num_queued_reqs=1024,
            dtype="float32",
            kv_cache_dtype="float32",
            device="cpu",
            attention_backend="none",
            weight_bytes=0,
            kv_cache_bytes=0,
            startup_seconds={},
        )
        self._socket.send(encode(EngineStatus(engine_id=0, incarnation=1, state="ready", info=info)))

    def accept(self, count: int) -> None:
        """Wait for that many requests; they run from now on."""
        ids = []
        while len(ids) < count:
            message = decode_to_engine(self._socket.recv())
            if isinstance(message, Submit):
                ids.append(message.request_id)
        self._ids = np.array(ids, "<u4")
        self._send(first=[FirstToken(number, 0, 0.0, 0.0) for number in ids])

    def step(self) -> None:
        self._send()

    def finish(self) -> None:
        self._send(finished=[Finish(number, "length", 0) for number in self._ids.tolist()])

    def _send(self, **more: list[FirstToken] | list[Finish]) -> None:
        count = len(self._ids)
        at = (np.arange(count) + self._sent) % len(self._words)
        self._sent += 1
        output = StepOutput(
            request_ids=self._ids.tobytes(),
            counts=np.ones(count, "<u2").tobytes(),
            tokens=np.array(self._words, "<i4")[at].tobytes(),
            **more,  # type: ignore[arg-type]
        )
        self._socket.send(encode(output))

    def close(self) -> None:
        self._socket.close()
        self._context.term()


class Clients:
    """Streams that are read and counted, nothing else."""

    def __init__(self, port: int, api: str, count: int) -> None:
        path, body = BODIES[api]
        content = msgspec.json.encode(
            {
                "model": MODEL,
                "stream": True,
                "max_tokens": 1 << 18,
                "ignore_eos": True,
                "temperature": 0,
                **body,
            }
        )
        head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        request = f"{head}content-length: {len(content)}\r\n\r\n".encode() + content
        self._epoll = select.epoll()
        self._sockets = {}
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(request)
            client.setblocking(False)
            self._sockets[client.fileno()] = client
            self._epoll.register(client, select.EPOLLIN)

    def read_events(self, count: int) -> None:
        """Until that many have come over all streams."""
        deadline = time.monotonic() + PATIENCE_S
        while count > 0:
            ready = self._epoll.poll(1.0, 1024)
            for descriptor, _ in ready:
                count -= self._sockets[descriptor].recv(1 << 16).count(EVENT)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count} events of {len(self._sockets)} streams did not come")

    def close(self) -> None:
        for client in self._sockets.values():
            client.close()
        self._epoll.close()


def plain_words(tokenizer: Tokenizer) -> list[int]:
    """Tokens that are a word by themselves, so that each of them makes an event."""
    names = [(number, tokenizer.id_to_token(number)) for number in range(tokenizer.get_vocab_size())]
    return [number for number, name in names if name and re.fullmatch(r"[Ġ▁]?[a-z]{2,}", name)]


@contextmanager
def front_end(directory: Path) -> Iterator[tuple[int, int, str]]:
    """A running front-end process: its pid, its port, and the endpoint for its engine."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listening.setblocking(False)
    config = FrontEndConfig(
        frontend_id=0,
        incarnation=1,
        num_frontends=1,
        listen_fd=listening.fileno(),
        endpoint=f"ipc://{directory}/frontend-0",
        model=MODEL,
        model_dir=str(MODEL_DIR),
        tokenizer_dir=str(MODEL_DIR),
        served_model_names=[MODEL],
        log_stats=False,
        log_level="warning",
    )
    path = directory / "config.json"
    path.write_bytes(msgspec.json.encode(config))
    command = [sys.executable, "-m", "penstock.server.frontend", str(path)]
    process = subprocess.Popen(command, pass_fds=(listening.fileno(),))
    try:
        yield process.pid, listening.getsockname()[1], config.endpoint
    finally:
        process.kill()
        process.wait()
        listening.close()


def scrape(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(1 << 16), b"")).decode()


def buckets(metrics: str, name: str) -> dict[float, float]:
    """Upper bound (seconds) -> observations up to it."""
    pattern = re.compile(rf'^{re.escape(name)}_bucket{{.*le="([^"]+)".*}} (\S+)$', re.MULTILINE)
    return {float(bound): float(count) for bound, count in pattern.findall(metrics)}


def quantile(counts: dict[float, float], share: float) -> float:
    """The upper bound of the bucket that holds the quantile; NaN without observations."""
    total = counts.get(float("inf"), 0.0)
    return next((bound for bound, count in counts.items() if total and count >= share * total), float("nan"))


def measure(streams: int, steps: int, api: str) -> str:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench") as folder,
        front_end(Path(folder)) as (pid, port, endpoint),
    ):
        engine = Engine(endpoint, plain_words(tokenizer), tokenizer.get_vocab_size())
        engine.greet()
        clients = Clients(port, api, streams)
        engine.accept(streams)
        # The first event of a chat stream is its role.
        clients.read_events(streams * (2 if api == "chat" else 1))
        warm_at = time.monotonic() + WARM_UP_S
        while time.monotonic() < warm_at:
            engine.step()
            clients.read_events(streams)
        lag_before = buckets(scrape(port), LAG)
        cpu, times = cpu_seconds(pid), [time.perf_counter()]
        for _ in range(steps):
            engine.step()
            clients.read_events(streams)
            times.append(time.perf_counter())
        cpu = cpu_seconds(pid) - cpu
        lag = {
            bound: count - lag_before.get(bound, 0.0) for bound, count in buckets(scrape(port), LAG).items()
        }
        engine.finish()
        clients.close()
        engine.close()
    step_ms = [1e3 * (after - before) for before, after in pairwise(times)]
    shown = [f"{1e3 * quantile(lag, share):g}" for share in (0.5, 0.99, 1.0)]
    return (
        f"{api} x{streams:<4} {cpu / steps / streams * 1e6:6.2f} us of CPU per token   "
        f"step to last event {statistics.median(step_ms):6.2f} ms median, "
        f"{float(np.percentile(step_ms, 99)):6.2f} ms p99   "
        f"loop lag <= {shown[0]} / {shown[1]} / {shown[2]} ms (p50 / p99 / max)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--api", choices=sorted(BODIES), nargs="+", default=["completions", "chat"])
    options = parser.parse_args()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    for api in options.api:
        for streams in options.streams:
            print(measure(streams, options.steps, api))


if __name__ == "__main__":
    main()
