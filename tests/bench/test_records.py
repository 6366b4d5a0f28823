"""What is recorded of a streamed answer, with the clock in the test's hand."""

from __future__ import annotations

import json

import pytest
from penstock.server.bench import records
from penstock.server.bench.records import Live, Record, StreamRecorder

SSE = {b"content-type": b"text/event-stream; charset=utf-8"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(records, "perf_counter", found)
    return found


def sse(*datas: object) -> bytes:
    return b"".join(
        b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"
        for data in datas
    )


def delta(text: str | None = None, finish_reason: str | None = None, **fields: object) -> dict[str, object]:
    content = {} if text is None else {"content": text}
    return {"choices": [{"delta": {**content, **fields}, "finish_reason": finish_reason}]}


def text(piece: str, finish_reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"text": piece, "finish_reason": finish_reason}]}


def usage(prompt: int, completion: int, **more: object) -> dict[str, object]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, **more}}


def record_of(clock: Clock, timeline: list[tuple[float, bytes]], status: int = 200, head=SSE) -> Record:
    """The settled record of a request sent at 100 s whose bytes arrive at the given seconds."""
    record = Record(scheduled=100.0, sent=100.0)
    recorder = StreamRecorder(record, Live())
    recorder.on_head(status, head)
    for at, data in timeline:
        clock.now = at
        recorder.on_body(data)
    recorder.complete()
    return record


def test_ttft_is_the_first_content_not_the_role_chunk(clock: Clock) -> None:
    record = record_of(
        clock,
        [
            (100.1, sse(delta("", role="assistant"))),
            (100.5, sse(delta("Hel"))),
            (100.7, sse(delta("lo"))),
            (101.0, sse(delta("!"), delta(finish_reason="stop"))),
            (101.1, sse(usage(5, 3), b"[DONE]")),
        ],
    )
    assert record.ok
    assert record.first == 100.5
    assert record.last == 101.0
    assert record.end == 101.1
    assert record.gaps.tolist() == pytest.approx([0.2, 0.3])
    assert record.tpot == pytest.approx(0.25)
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (5, 3, "stop")
    assert not record.output_counted


def test_tpot_uses_the_servers_token_count_when_chunks_hold_several(clock: Clock) -> None:
    record = record_of(
        clock,
        [
            (101.0, sse(text("a b"))),
            (102.0, sse(text("c d", "length"))),
            (102.0, sse(usage(5, 5), b"[DONE]")),
        ],
    )
    assert record.num_chunks == 2
    assert record.tpot == pytest.approx(1.0 / 4)


def test_without_usage_chunks_are_counted_and_flagged(clock: Clock) -> None:
    record = record_of(clock, [(101.0, sse(text("a"))), (102.0, sse(text("b"), text("", "stop"), b"[DONE]"))])
    assert record.ok
    assert (record.output_tokens, record.output_counted) == (2, True)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "tool_calls"])
def test_reasoning_and_tool_calls_are_tokens_too(clock: Clock, field: str) -> None:
    value = [{"index": 0, "function": {"arguments": "{"}}] if field == "tool_calls" else "hm"
    record = record_of(
        clock, [(101.0, sse(delta(**{field: value}))), (102.0, sse(delta("x", "stop"), b"[DONE]"))]
    )
    assert record.first == 101.0
    assert record.num_chunks == 2


def test_tokens_without_text_still_have_a_first_moment(clock: Clock) -> None:
    record = record_of(
        clock, [(101.0, sse(text(""))), (103.0, sse(text("", "length"), usage(4, 2), b"[DONE]"))]
    )
    assert (record.first, record.last, record.tpot) == (101.0, 103.0, 2.0)


def test_cached_tokens_come_from_usage(clock: Clock) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 48}}
    record = record_of(clock, [(101.0, sse(text("a", "stop"), usage(64, 1, **details), b"[DONE]"))])
    assert record.cached_tokens == 48


@pytest.mark.parametrize(
    ("status", "head", "body", "kind", "message"),
    [
        (429, {}, b'{"error": {"message": "queue is full", "type": "x"}}', "HTTP 429", "queue is full"),
        (401, {}, b'{"error": "Unauthorized"}', "HTTP 401", "Unauthorized"),
        (502, {}, b"<html>bad gateway</html>", "HTTP 502", "<html>bad gateway</html>"),
        (
            200,
            SSE,
            sse(text("a"), {"error": {"message": "engine lost"}}, b"[DONE]"),
            "error event",
            "engine lost",
        ),
        (200, SSE, sse(text("a")), "truncated", "without a finish_reason"),
        (200, SSE, sse(text("a", "error"), b"[DONE]"), "finish_reason error", "gave the request up"),
        (200, SSE, sse(b"{nonsense", b"[DONE]"), "bad chunk", "nonsense"),
        (200, SSE, sse({"choices": "x"}, b"[DONE]"), "bad chunk", "choices"),
        (200, {b"content-type": b"application/json"}, b'{"choices": []}', "not a stream", "choices"),
    ],
)
def test_every_way_to_fail_has_its_kind(
    clock: Clock, status: int, head: dict[bytes, bytes], body: bytes, kind: str, message: str
) -> None:
    record = record_of(clock, [(101.0, body)], status, head)
    assert not record.ok
    assert record.error == kind
    assert message in record.error_message


def test_a_stream_with_done_but_no_finish_reason_is_whole(clock: Clock) -> None:
    assert record_of(clock, [(101.0, sse(text("a"), b"[DONE]"))]).ok
