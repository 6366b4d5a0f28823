"""Where this client's own limit lies: the run's load, for a second, against the null server."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..client.http import HttpClient
from .load import send
from .records import Live, Record

WARM_S = 0.25
MEASURE_S = 1.0
MAX_STREAMS = 1024
# The null server's pace: slow enough that the client sleeps between rounds and is woken for each token, as in a real
# run (tokens that pile up are cheaper), with no more than this much work in a round.
INTERVAL_S = 0.002
INTERVAL_PER_STREAM_S = 20e-6
# Answers are cut so that requests begin and end within the measured second.
ANSWER_S = 0.3


@dataclass(frozen=True)
class Limit:
    """What this client can take in on this machine with one core to itself, at the given shape of load."""

    tokens_per_s: float
    requests_per_s: float
    cpu_us_per_token: float  # everything included: sending, connections, HTTP, events, JSON, bookkeeping
    streams: int
    tokens_per_request: float

    def share(self, tokens_per_s: float) -> float:
        """How much of the limit a rate is."""
        return tokens_per_s / self.tokens_per_s


@asynccontextmanager
async def null_server(cap: int = 1 << 30, interval_s: float = 0.0) -> AsyncIterator[str]:
    """The URL of a null server in its own process, which ends with the block (and with this process)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        f"{__package__}.null_server",
        f"--max-tokens-cap={cap}",
        f"--interval-ms={interval_s * 1000}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the client, which ends it in order
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = (await process.stdout.readline()).decode().strip()
        if not port:
            raise OSError(
                f"the null server ended with {await process.wait()}: use --no-calibrate to run without it"
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def measure_limit(
    path: str, bodies: Sequence[bytes], mean_output_tokens: float, streams: int, measure_s: float = MEASURE_S
) -> Limit:
    """Send `bodies` round and round over `streams` connections; the limit is per second of this client's CPU time.

    CPU time, not wall time: a busy machine or the null server may hold the rate back, while the client's own cost
    for a token stays what it is.
    """
    streams = max(1, min(streams, MAX_STREAMS))
    interval_s = max(INTERVAL_S, streams * INTERVAL_PER_STREAM_S)
    cap = max(1, round(ANSWER_S / interval_s))
    live = Live()
    async with null_server(cap, interval_s) as url:
        client = HttpClient(url)
        turn = itertools.cycle(bodies)

        async def stream() -> None:
            while True:
                await send(client, path, next(turn), Record(scheduled=0.0), live, 60.0)

        tasks = [asyncio.ensure_future(stream()) for _ in range(streams)]
        try:
            await asyncio.sleep(WARM_S)
            tokens, requests, cpu = live.chunks, live.finished, time.process_time()
            await asyncio.sleep(measure_s)
            tokens, requests, cpu = live.chunks - tokens, live.finished - requests, time.process_time() - cpu
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            client.close()
    if live.failed or not tokens:
        raise OSError("the null server did not answer: use --no-calibrate to run without it")
    per_request = min(mean_output_tokens, cap)
    return Limit(
        tokens_per_s=tokens / cpu,
        requests_per_s=requests / cpu if requests else tokens / cpu / per_request,
        cpu_us_per_token=cpu / tokens * 1e6,
        streams=streams,
        tokens_per_request=per_request,
    )
