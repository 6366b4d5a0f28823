"""Kill things while they work: streams go on, processes and files are not left behind."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from running_server import Running, serve, wait_until

GRAMMAR = "penstock.engine.grammar"
RANK = "penstock.engine.parallel"
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 999}, "minItems": 200}
PROMPTS = [f"Tell me a story about number {number}." for number in range(8)]


def body(prompt: str, number: int, stream: bool = True, max_tokens: int = 300) -> dict[str, object]:
    """Half greedy, half seeded sampling; long enough that a kill finds every stream in the middle.

    A schema holds two of eight. For the others the model's special tokens, ids 0 to 2, are banned: a model past its
    answer might repeat them, which shows no text.
    """
    if number % 4 == 2:
        length = {
            "response_format": {"type": "json_schema", "json_schema": {"name": "numbers", "schema": NUMBERS}}
        }
    else:
        length = {"ignore_eos": True, "logit_bias": {"0": -100, "1": -100, "2": -100}}
    return {
        **length,
        "model": "penstock-demo",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0 if number % 2 or number == 2 else 0.9,
        "seed": number,
        "stream": stream,
    }


class Stream(threading.Thread):
    """One streamed chat; `pieces` grows as text arrives."""

    def __init__(self, server: Running, prompt: str, number: int, max_tokens: int = 300) -> None:
        super().__init__(daemon=True)
        self.max_tokens = max_tokens
        self.pieces: list[str] = []
        self.error: object = None
        self.finish: str | None = None
        self.server, self.prompt, self.number = server, prompt, number

    def run(self) -> None:
        url = f"{self.server.v1}/chat/completions"
        asked = body(self.prompt, self.number, max_tokens=self.max_tokens)
        with httpx.stream("POST", url, json=asked, timeout=120) as response:
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    self.error = event["error"]
                    return
                for choice in event["choices"]:
                    self.pieces.append(choice["delta"].get("content") or "")
                    self.finish = choice["finish_reason"] or self.finish


def test_killed_engine_is_a_pause_and_streams_end_with_the_same_tokens() -> None:
    with serve("--dtype", "float32", "--max-num-seqs", "8") as server:
        expected = []
        for number, prompt in enumerate(PROMPTS):
            reply = httpx.post(
                f"{server.v1}/chat/completions", json=body(prompt, number, stream=False), timeout=120
            ).json()
            expected.append(reply["choices"][0]["message"]["content"])
        streams = [Stream(server, prompt, number) for number, prompt in enumerate(PROMPTS)]
        for stream in streams:
            stream.start()
        first = server.engine()
        wait_until(lambda: all(len(stream.pieces) > 20 for stream in streams), "all streams to be under way")
        first.kill()
        for stream in streams:
            stream.join(100)
        assert [stream.error for stream in streams] == [None] * len(streams)
        assert ["".join(stream.pieces) for stream in streams] == expected
        assert {stream.finish for stream in streams} == {"length"}
        assert server.engine().pid != first.pid
        wait_until(lambda: server.load()["held_pages"] == 0, "every page to return")


def test_killed_rank_takes_its_replica_down_and_streams_end_with_the_same_tokens() -> None:
    two_ranks = ("--tensor-parallel-size", "2", "--spec-method", "ngram")
    with serve("--dtype", "float32", "--max-num-seqs", "8", *two_ranks) as server:
        undisturbed, streams = (
            [Stream(server, PROMPTS[number], number, max_tokens=60) for number in (0, 1, 2)] for _ in range(2)
        )  # seeded, greedy, with a schema
        for stream in undisturbed:
            stream.start()
        for stream in undisturbed:
            stream.join(60)
        for stream in streams:
            stream.start()
        engine, (rank,) = server.engine(), server.children(RANK)
        wait_until(lambda: all(len(stream.pieces) > 5 for stream in streams), "all streams to be under way")
        rank.kill()
        assert {stream.finish for stream in streams} == {None}
        for stream in streams:
            stream.join(60)
        assert [stream.error for stream in (*undisturbed, *streams)] == [None] * 6
        assert ["".join(stream.pieces) for stream in streams] == [
            "".join(stream.pieces) for stream in undisturbed
        ]
        assert not engine.is_running()
        # The other way round: no rank outlives the one that leads.
        engine, (rank,) = server.engine(), server.children(RANK)
        engine.kill()
        _, alive = psutil.wait_procs([rank], timeout=10)
        assert not alive


def test_engine_that_cannot_be_restarted_ends_streams_with_an_error_and_fails_health() -> None:
    with serve("--engine-restart-limit", "0", "--max-num-seqs", "8") as server:
        stream = Stream(server, PROMPTS[0], 1)
        stream.start()
        wait_until(lambda: len(stream.pieces) > 5, "the stream to be under way")
        server.engine().kill()
        stream.join(30)
        assert isinstance(stream.error, dict)
        assert stream.error["message"]
        wait_until(lambda: httpx.get(f"{server.url}/health").status_code == 503, "/health to say so")


def left_behind(before: set[str]) -> set[str]:
    """Shared memory and runtime folders that were not there before."""
    roots = [Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp"))]
    now = {str(path) for root in roots if root.is_dir() for path in root.glob("*penstock*")}
    return now - before


def whole_family(server: Running) -> list[psutil.Process]:
    """All processes under the supervisor, with the grammar process, which is started after the others."""
    wait_until(lambda: bool(server.children(GRAMMAR)), "the grammar process")
    return psutil.Process(server.process.pid).children(recursive=True)


def test_a_killed_grammar_process_is_replaced_and_no_stream_notices() -> None:
    with serve("--max-num-seqs", "8") as server:
        others = [process for process in whole_family(server) if GRAMMAR not in process.cmdline()]
        assert len(others) == 2  # engine and front end
        (first,) = server.children(GRAMMAR)
        stream = Stream(server, PROMPTS[0], 1)
        stream.start()
        wait_until(lambda: len(stream.pieces) > 5, "the stream to be under way")
        first.kill()
        wait_until(
            lambda: [process.pid for process in server.children(GRAMMAR)] not in ([], [first.pid]), "another"
        )
        stream.join(60)
        assert (stream.error, stream.finish) == (None, "length")
        assert all(process.is_running() for process in others)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_finishes_running_streams_and_leaves_nothing(how: signal.Signals) -> None:
    before = left_behind(set())
    with serve("--max-num-seqs", "8") as server:
        family = whole_family(server)
        stream = Stream(server, PROMPTS[0], 1)
        stream.start()
        wait_until(lambda: len(stream.pieces) > 5, "the stream to be under way")
        server.process.send_signal(how)
        assert server.process.wait(60) == 0
        stream.join(10)
        assert stream.error is None
        assert stream.finish == "length"
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
    assert not left_behind(before)


def test_a_stop_signal_finishes_what_runs_in_the_stages_of_a_pipeline() -> None:
    before = left_behind(set())
    with serve("--max-num-seqs", "8", "--pipeline-parallel-size", "2") as server:
        family = whole_family(server)
        assert len([process for process in family if RANK in process.cmdline()]) == 1
        streams = [Stream(server, PROMPTS[number], 1) for number in range(3)]
        for stream in streams:
            stream.start()
        wait_until(lambda: all(len(stream.pieces) > 5 for stream in streams), "the streams to be under way")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        for stream in streams:
            stream.join(10)
        assert {(str(stream.error), stream.finish) for stream in streams} == {("None", "length")}
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
    assert not left_behind(before)


def test_no_orphan_survives_a_killed_supervisor() -> None:
    with serve("--max-num-seqs", "8") as server:
        family = whole_family(server)
        server.process.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive


def test_api_workers_share_one_port_and_one_engine() -> None:
    with serve("--api-workers", "2", "--max-num-seqs", "8") as server:
        assert len(server.children("penstock.server.frontend")) == 2
        for number in range(12):  # a new connection each, so that both workers get some
            reply = httpx.post(
                f"{server.v1}/chat/completions", json={**body("Hello!", 1, stream=False), "max_tokens": 4}
            )
            assert reply.status_code == 200, number
        wait_until(
            lambda: server.metric("vllm:request_success_total") == 12, "both workers' counters in one scrape"
        )
        victim = server.children("penstock.server.frontend")[0]
        victim.kill()
        wait_until(lambda: len(server.children("penstock.server.frontend")) == 2, "the worker's replacement")
        deadline = time.monotonic() + 20
        while httpx.get(f"{server.url}/ready").status_code != 200:
            assert time.monotonic() < deadline
