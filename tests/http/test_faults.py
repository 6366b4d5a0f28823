"""Engines die, queues fill, clients leave, servers stop: nothing that was accepted is lost, and the rest is told why."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
import zmq
from fake_engine import FakeEngine, FakeSupervisor
from http_family import LIMIT_S, Family, family, front_end_config, metric, wait_until
from penstock.scheduler.messages import Rejected, Serving, StepOutput, Submit, encode
from tiny_tokenizer import write_model

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hello there"}]


def body(**options: object) -> dict:
    return {"prompt": "Hello", "max_tokens": 30, "temperature": 0, **options}


class Stream(threading.Thread):
    """Reads one stream; `text` grows, the rest is there at the end."""

    def __init__(self, url: str, request: dict, path: str = TEXT) -> None:
        super().__init__(daemon=True)
        self.url, self.request, self.path = url, request, path
        self.text = ""
        self.status = 0
        self.lines: list[str] = []
        self.error: dict | None = None
        self.finish: str | None = None
        self.start()

    def run(self) -> None:
        body = {**self.request, "stream": True}
        with httpx.stream("POST", self.url + self.path, json=body, timeout=LIMIT_S) as reply:
            self.status = reply.status_code
            for line in reply.iter_lines():
                self.lines.append(line)
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                self.error = event.get("error", self.error)
                for choice in event.get("choices", []):
                    self.text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
                    self.finish = choice["finish_reason"] or self.finish

    def done(self) -> Stream:
        self.join(LIMIT_S)
        assert not self.is_alive()
        return self


@pytest.fixture
def served() -> Iterator[Family]:
    with family(sse_keep_alive_s=0.05) as running:
        yield running


# ---------------------------------------------------------------------------------------------------- engines that die


def test_a_dead_engine_is_a_pause_and_the_tokens_are_the_same(served: Family) -> None:
    requests = [
        body(prompt="Hello"),
        body(prompt="one two", temperature=1, seed=7),
        body(prompt="three", stop=["never said"]),
    ]
    served.engine.allow(0)
    streams = [Stream(served.url, request) for request in requests]
    served.engine.wait_for(lambda: len(served.engine.running) == 3, "three sequences")
    served.engine.allow(11)
    served.engine.wait_for(lambda: served.engine.steps_allowed == 0, "eleven steps")
    wait_until(lambda: served.metric("vllm:generation_tokens_total") == 33, "their tokens")
    first = served.engine
    first.stop()
    served.supervisor.say("restarting", "killed by signal 9", incarnation=1)
    wait_until(lambda: served.client.get("/ready").status_code == 503, "the front end to notice")
    assert served.client.get("/health").status_code == 200
    waiting = Stream(served.url, body(prompt="seven"))
    second = served.new_engine(2)
    for stream, request in zip(streams, requests, strict=True):
        seed = request.get("seed", 0)
        assert stream.done().text == served.text(served.ids(request["prompt"]), 30, seed)
        assert stream.finish == "length"
        assert stream.error is None
    assert waiting.done().text == served.text(served.ids("seven"), 30)
    assert len(second.seen.hellos) == 1
    resumed = [submit for submit in second.seen.submits if len(submit.tokens) > 4 * submit.num_prompt_tokens]
    assert len(resumed) == 3
    assert all(len(submit.tokens) // 4 - submit.num_prompt_tokens == 11 for submit in resumed)
    assert served.metric("penstock:resumed_sequences_total") == 3
    assert served.metric("vllm:generation_tokens_total") == 4 * 30


def test_a_new_incarnation_alone_is_enough_and_the_old_one_is_not_heard(served: Family) -> None:
    served.engine.allow(5)
    stream = Stream(served.url, body())
    old = served.engine
    old.wait_for(lambda: old.steps_allowed == 0, "five steps")
    new = served.new_engine(2)
    new.wait_for(lambda: bool(new.seen.submits), "the resubmission")
    old.allow(None)  # it goes on talking
    assert stream.done().text == served.text(served.ids("Hello"), 30)
    old.stop()


def test_logprobs_and_echo_survive_a_death_without_repetition(served: Family) -> None:
    served.engine.allow(4)
    request = body(prompt="one two three", echo=True, logprobs=1)
    stream = Stream(served.url, request)
    served.engine.wait_for(lambda: served.engine.steps_allowed == 0, "four steps")
    served.engine.stop()
    second = served.new_engine(2)
    ids = served.ids("one two three")
    assert stream.done().text == "one two three" + served.text(ids, 30)
    assert second.seen.submits[0].sampling.prompt_logprobs == -1
    tokens = 0
    for line in stream.lines:
        if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
            tokens += len((choices[0]["logprobs"] or {"tokens": []})["tokens"])
    assert tokens == len(ids) + 30


def test_a_full_queue_does_not_lose_what_was_accepted(served: Family) -> None:
    served.engine.allow(5)
    stream = Stream(served.url, body())
    served.engine.wait_for(lambda: served.engine.steps_allowed == 0, "five steps")
    served.engine.stop()
    times = []

    def full_at_first(submit: Submit) -> Rejected | None:
        times.append(submit)
        return Rejected(submit.request_id, "queue_full", "full", 0.01, 9) if len(times) < 3 else None

    second = FakeEngine(served.engine.endpoints, incarnation=2)
    second.reject = full_at_first
    served.engine = second
    second.start()
    assert stream.done().text == served.text(served.ids("Hello"), 30)
    assert len(times) == 3


def test_an_engine_given_up_ends_streams_with_an_error_event(served: Family) -> None:
    served.engine.allow(3)
    stream = Stream(served.url, {"messages": USER, "temperature": 0}, CHAT)
    served.engine.wait_for(lambda: served.engine.steps_allowed == 0, "three steps")
    wait_until(lambda: bool(stream.text), "some text")
    served.engine.stop()
    served.supervisor.say("failed", "it died 5 times", incarnation=1)
    stream.done()
    assert stream.status == 200
    assert stream.finish == "error"
    assert "it died 5 times" in stream.error["message"]
    assert stream.error["code"] == 503
    assert [line for line in stream.lines if line][-1] == "data: [DONE]"
    health = served.client.get("/health")
    assert health.status_code == 503
    assert health.json()["reason"] == "it died 5 times"
    refused = served.client.post(TEXT, json=body())
    assert refused.status_code == 503
    assert served.metric("replica_count_by_status", status="failed") == 1


def test_whole_answers_of_a_failed_engine_are_errors_too(served: Family) -> None:
    served.engine.allow(0)
    replies = []
    asking = threading.Thread(target=lambda: replies.append(httpx.post(served.url + TEXT, json=body())))
    asking.start()
    served.engine.wait_for(lambda: bool(served.engine.running), "the request")
    served.supervisor.say("failed", "gone", incarnation=1)
    asking.join(LIMIT_S)
    assert replies[0].status_code == 503
    assert replies[0].json()["error"]["type"] == "service_unavailable"


def test_a_request_that_breaks_in_the_engine_is_a_server_error(served: Family) -> None:
    served.engine.finish_with_error = True
    assert served.client.post(TEXT, json=body()).status_code == 500
    assert (
        Stream(served.url, body()).done().status == 500
    )  # nothing had been told yet, so it is a plain error


@pytest.mark.parametrize("identity", [b"engine:9:9", b"grammar:9", b"supervisor", b"nobody", b"\xff"])
def test_undecodable_and_misshapen_messages_are_dropped(served: Family, identity: bytes) -> None:
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.setsockopt(zmq.LINGER, 1000)
    stranger.setsockopt(zmq.IDENTITY, identity)
    stranger.connect(served.endpoint)
    for frame in (b"", b"\xc1", b"\x81\xa4type\xa4evil", encode(StepOutput(request_ids=b"123"))):
        stranger.send(frame)
    stranger.send_multipart([b"a", b"b", b"c"])
    stranger.close()
    context.term()
    assert served.client.post(TEXT, json=body()).json()["choices"][0]["text"] == served.text(
        served.ids("Hello"), 30
    )


def test_sending_in_vain_does_not_swallow_what_arrives(served: Family) -> None:
    """The socket's descriptor tells of new messages once; any other use of the socket may eat that news."""
    link, loop = served.services.link, served.loop
    busy = True

    def send_to_nobody() -> None:
        link._send(b"nobody", Serving(0, {}))
        if busy:
            loop.call_soon(send_to_nobody)

    loop.call_soon_threadsafe(send_to_nobody)
    try:
        for _ in range(10):
            assert served.client.post(TEXT, json=body(max_tokens=5)).status_code == 200
    finally:
        busy = False


# --------------------------------------------------------------------------------------------------------------- limits


def test_a_full_queue_is_a_429_that_says_when_to_come_back(served: Family) -> None:
    def full(submit: Submit) -> Rejected:
        return Rejected(submit.request_id, "queue_full", "4 requests wait", 2.3, 4)

    served.engine.reject = full
    for stream in (False, True):
        reply = served.client.post(TEXT, json=body(stream=stream))
        assert reply.status_code == 429
        assert reply.headers["retry-after"] == "3"
        assert reply.headers["x-queue-waiting"] == "4"
        assert reply.headers["x-queue-limit"] == "4"
        assert reply.json()["error"]["type"] == "rate_limit_exceeded"
    assert served.metric("vllm:admission_rejections_total", reason="queue_full") == 2


def test_one_refused_choice_ends_the_others(served: Family) -> None:
    served.engine.allow(0)
    seen: list[int] = []

    def second_is_full(submit: Submit) -> Rejected | None:
        seen.append(submit.request_id)
        return Rejected(submit.request_id, "queue_full", "full", 1, 4) if len(seen) == 2 else None

    served.engine.reject = second_is_full
    assert served.client.post(TEXT, json=body(n=3)).status_code == 429
    served.engine.wait_for(lambda: {seen[0], seen[2]} <= served.engine.seen.aborted, "their aborts")


def test_what_the_engine_calls_invalid_is_a_400(served: Family) -> None:
    served.engine.reject = lambda submit: Rejected(submit.request_id, "invalid", "needs 9 pages, 4 exist")
    reply = served.client.post(TEXT, json=body())
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "needs 9 pages, 4 exist"


def test_requests_before_the_engine_is_ready_are_told_to_come_back() -> None:
    with family(wait=False) as loading:
        assert loading.client.get("/health").status_code == 200
        assert loading.client.get("/ready").status_code == 503
        reply = loading.client.post(TEXT, json=body())
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        loading.engine.start()
        assert loading.supervisor.serving().frontend_id == 0
        assert loading.client.get("/ready").status_code == 200


# -------------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_client_that_leaves_stops_costing(served: Family, stream: bool, steps: int) -> None:
    served.engine.allow(steps)
    connection = socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])))
    data = json.dumps(body(n=2, stream=stream)).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    served.engine.wait_for(lambda: len(served.engine.running) == 2, "both choices")
    served.engine.wait_for(lambda: served.engine.steps_allowed == 0, "the steps")
    connection.close()
    served.engine.wait_for(lambda: not served.engine.running, "both aborts")
    wait_until(lambda: served.metric("penstock:client_disconnects_total") == 1, "the count")
    assert served.metric("penstock:aborted_sequences_total") == 2
    assert served.metric("vllm:request_success_total", finished_reason="abort") == 2
    assert served.metric("concurrent_requests") == 0


def test_a_client_that_leaves_while_its_engine_is_dead_is_forgotten(served: Family) -> None:
    served.engine.allow(0)
    with httpx.stream("POST", served.url + TEXT, json=body(stream=True), timeout=LIMIT_S) as reply:
        assert reply.status_code == 200  # a keep-alive came first
        served.engine.stop()
        served.supervisor.say("restarting", "x")
        wait_until(lambda: served.services.link.num_parked == 1, "the sequence to wait")
    wait_until(lambda: served.services.link.num_outstanding == 0, "the sequence to go")
    second = served.new_engine(2)
    wait_until(lambda: served.client.get("/ready").status_code == 200, "the new engine")
    assert not second.seen.submits


def test_silence_is_filled_with_comments(served: Family) -> None:
    served.engine.allow(0)
    stream = Stream(served.url, body(max_tokens=2))
    wait_until(lambda: stream.lines.count(": ping") >= 2, "two comments")
    served.engine.allow(None)
    assert stream.done().text == served.text(served.ids("Hello"), 2)


# ------------------------------------------------------------------------------------------------------------ the end


def test_a_drain_finishes_what_runs_and_refuses_the_rest(served: Family) -> None:
    served.engine.allow(2)
    stream = Stream(served.url, body())
    served.engine.wait_for(lambda: served.engine.steps_allowed == 0, "two steps")
    wait_until(lambda: bool(stream.text), "some text")
    served.drain()
    wait_until(lambda: served.services.link.draining, "the drain")
    with pytest.raises(httpx.HTTPError):  # nobody accepts the connection any more
        httpx.get(served.url + "/health", timeout=0.2)
    served.engine.allow(None)
    assert stream.done().text == served.text(served.ids("Hello"), 30)
    assert stream.error is None
    assert served.ended.wait(LIMIT_S)


def test_a_kept_alive_connection_is_told_that_the_server_leaves(served: Family) -> None:
    served.services.link.draining = True
    reply = served.client.post(TEXT, json=body())
    assert reply.status_code == 503
    assert reply.headers["connection"] == "close"
    assert served.client.get("/ready").status_code == 503
    assert served.client.get("/health").status_code == 200
    served.services.link.draining = False


def test_a_drain_ends_with_an_error_event_when_its_time_is_over() -> None:
    with family(shutdown_timeout_s=0.2) as served:
        served.engine.allow(2)
        stream = Stream(served.url, body())
        wait_until(lambda: bool(stream.text), "some text")
        served.drain()
        assert "shutting down" in stream.done().error["message"]
        assert stream.finish == "error"
        assert served.ended.wait(LIMIT_S)


def test_two_processes_share_a_socket_and_their_numbers(tmp_path: Path) -> None:
    write_model(tmp_path)
    cells = tmp_path / "metrics"
    cells.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        endpoints = [f"ipc://{tmp_path}/frontend-{number}" for number in range(2)]
        processes = []
        for number, endpoint in enumerate(endpoints):
            config = front_end_config(
                tmp_path,
                listening,
                frontend_id=number,
                num_frontends=2,
                endpoint=endpoint,
                multiprocess_dir=str(cells),
            )
            path = tmp_path / f"frontend-{number}.json"
            path.write_bytes(msgspec.json.encode(config))
            os.set_inheritable(config.listen_fd, True)
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "penstock.server.frontend", str(path)], close_fds=False
                )
            )
            os.close(config.listen_fd)
        engine = FakeEngine(endpoints).start()
        supervisors = [FakeSupervisor(endpoint) for endpoint in endpoints]
        try:
            assert {supervisor.serving().frontend_id for supervisor in supervisors} == {0, 1}
            engine.report(
                num_running=3, prefix_cache_queries=10, prefix_cache_hits=4, mixed_expected_seconds=1.5
            )
            for _ in range(40):  # each on its own connection: the kernel spreads them
                assert httpx.post(url + TEXT, json=body(max_tokens=3)).status_code == 200
            assert len({path.name for path in cells.iterdir()}) == 2
            submitters = {hello.frontend_id for hello in engine.seen.hellos}
            assert submitters == {0, 1}
            for _ in range(6):
                with httpx.Client(base_url=url) as client:
                    assert metric(client, "vllm:request_success_total", finished_reason="length") == 40
                    assert metric(client, "vllm:generation_tokens_total") == 120
                    assert metric(client, "vllm:num_requests_running") == 3
                    assert metric(client, "vllm:prefix_cache_hits_total") == 4
                    assert metric(client, "penstock:mixed_expected_seconds_total") == 1.5
                    assert metric(client, "vllm:inter_token_latency_seconds_count") <= 80
            for process in processes:
                process.send_signal(signal.SIGTERM)
            assert [process.wait(LIMIT_S) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
                process.wait(LIMIT_S)
            engine.stop()
            for supervisor in supervisors:
                supervisor.close()


def test_gpus_are_metered_by_replica_and_left_out_where_there_are_none(served: Family) -> None:
    text = served.client.get("/metrics").text
    assert "gpu_usage{" not in text
    served.engine.report(gpu_usage=0.25, gpu_memory_bytes=7 << 30)
    wait_until(lambda: "gpu_usage{" in served.client.get("/metrics").text, "a status with the GPU in it")
    assert served.metric("gpu_usage", replica="0") == 0.25
    assert served.metric("gpu_memory_usage", replica="0") == 7 << 30
