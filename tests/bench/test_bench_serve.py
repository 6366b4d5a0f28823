"""`penstock bench serve` against a scripted server on a real socket: what it sends and what it reports."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_openai import (
    CLOSE,
    END,
    STREAM_HEAD,
    Answer,
    FakeOpenAI,
    Gate,
    Pause,
    Request,
    choice,
    event,
    fake_openai,
    whole,
)
from fake_openai import stream as streamed
from penstock.server.bench.cli import main


def completion(*pieces: object, **settings: Any) -> Answer:
    return streamed(*pieces, chat=False, **settings)


def tokens_or(answer: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    """A server with /tokenize."""

    def respond(request: Request) -> Answer:
        if request.path == "/tokenize":
            return whole({"tokens": list(range(100, 400))})
        return answer(request)

    return respond


def run(
    fake: FakeOpenAI, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0
) -> tuple[dict[str, Any], str]:
    """(figures, table) of a run without calibration or warm-up."""
    quick = ["--base-url", fake.url, "--no-calibrate", "--num-warmups", "0", "--json", "-"]
    assert main([*quick, *arguments]) == code
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


def asked(fake: FakeOpenAI) -> list[Request]:
    return [request for request in fake.posts() if request.path.endswith("completions")]


SMALL = ("--num-prompts", "6", "--random-input-len", "12", "--random-output-len", "5")


def test_default_run_sends_token_ids_of_the_exact_length_and_counts_what_comes_back(capsys) -> None:
    with fake_openai(tokens_or(lambda _: completion("a", "b", "c", prompt_tokens=12, cached=4))) as fake:
        figures, _ = run(fake, capsys, *SMALL, "--ignore-eos", "--max-concurrency", "2")
        sent = [request.body for request in asked(fake)]
        assert fake.peak <= 2
    assert {request.path for request in asked(fake)} == {"/v1/completions"}
    for body in sent:
        assert len(body["prompt"]) == 12
        assert set(body["prompt"]) <= set(range(100, 400))
        assert body["model"] == "fake"
        assert (body["max_tokens"], body["temperature"], body["ignore_eos"], body["stream"]) == (
            5,
            0.0,
            True,
            True,
        )
        assert body["stream_options"] == {"include_usage": True}
    assert len({tuple(body["prompt"]) for body in sent}) == 6
    assert (figures["completed"], figures["failed"]) == (6, 0)
    assert figures["total_input_tokens"] == 72
    assert figures["total_output_tokens"] == 18
    assert figures["output_tokens_counted_requests"] == 0
    assert figures["cached_tokens_share"] == pytest.approx(1 / 3)
    assert figures["max_concurrent_requests"] == 2
    assert figures["finish_reasons"] == {"stop": 6}


def test_scripted_delays_show_in_the_figures_they_belong_to(capsys) -> None:
    """Lower bounds only: a busy machine adds to them, nothing can take from them."""
    with fake_openai(
        tokens_or(lambda _: completion(Pause(0.06), "a", Pause(0.03), "b", Pause(0.03), "c"))
    ) as fake:
        figures, _ = run(fake, capsys, *SMALL)
    assert figures["mean_ttft_ms"] >= 60
    assert figures["mean_itl_ms"] >= 25
    assert figures["mean_tpot_ms"] >= 25
    assert figures["p99_e2el_ms"] >= figures["p50_e2el_ms"] >= 120
    assert figures["latency_from"] == "sending"


def test_open_loop_latency_includes_the_wait_for_a_free_place(capsys) -> None:
    """One place, arrivals all but together, 40 ms each: the last of four has waited at least 120 ms before it is sent."""
    with fake_openai(tokens_or(lambda _: completion(Pause(0.04), "a"))) as fake:
        figures, table = run(
            fake, capsys, *SMALL, "--num-prompts", "4", "--request-rate", "10000", "--max-concurrency", "1"
        )
        assert fake.peak == 1
    assert figures["latency_from"] == "scheduled arrival"
    # 40, 80, 120, 160 ms from arrival, less the arrivals' own spread of about 0.3 ms
    assert figures["mean_ttft_ms"] >= 95
    assert figures["mean_ttft_ms"] > figures["mean_ttft_from_sending_ms"] + 50
    assert "from sending: without the wait in the client" in table


def test_every_kind_of_failure_is_reported_by_its_name(capsys) -> None:
    answers = itertools.cycle(
        [
            lambda: whole({"error": {"message": "queue is full"}}, 429, "Retry-After: 1\r\n"),
            lambda: whole({"error": {"message": "loading"}}, 503),
            lambda: [STREAM_HEAD, event(choice(False, "a")), CLOSE],
            lambda: [STREAM_HEAD, event(choice(False, "a")), END],
            lambda: [STREAM_HEAD, event({"error": {"message": "engine lost"}}), event("[DONE]") + END],
            lambda: completion("fine"),
        ]
    )
    with fake_openai(tokens_or(lambda _: next(answers)())) as fake:
        figures, table = run(fake, capsys, *SMALL, "--max-concurrency", "1")
    assert figures["completed"] == 1
    assert figures["errors"] == {
        "HTTP 429": 1,
        "HTTP 503": 1,
        "disconnected": 1,
        "truncated": 1,
        "error event": 1,
    }
    assert figures["error_examples"]["HTTP 429"] == "queue is full"
    assert "engine lost" in table


def test_a_request_that_takes_too_long_is_a_timeout_and_its_connection_is_closed(capsys) -> None:
    gate = Gate()
    with fake_openai(tokens_or(lambda _: completion("a", gate))) as fake:
        figures, _ = run(fake, capsys, *SMALL, "--num-prompts", "1", "--timeout", "0.05", code=1)
        assert fake.left_early.wait(10)
    assert figures["errors"] == {"timeout": 1}


def test_output_tokens_without_usage_are_counted_chunks_and_flagged(capsys) -> None:
    with fake_openai(tokens_or(lambda _: completion("a", "b", usage=False))) as fake:
        figures, table = run(fake, capsys, *SMALL)
    assert figures["total_output_tokens"] == 12
    assert figures["output_tokens_counted_requests"] == 6
    assert "chunks counted in 6 requests" in table
    assert figures["total_input_tokens"] == 72  # known, as the prompts were made here
    assert figures["total_cached_tokens"] is None


def test_goodput_under_an_slo(capsys) -> None:
    slow = itertools.cycle([False, True])
    with fake_openai(
        tokens_or(lambda _: completion(*([Pause(0.3)] if next(slow) else []), "a", "b"))
    ) as fake:
        figures, _ = run(fake, capsys, *SMALL, "--max-concurrency", "1", "--slo", "ttft=290ms,e2el=100s")
    assert figures["slo_ms"] == {"ttft": 290.0, "e2el": 100_000.0}
    assert figures["good_requests"] <= 3
    assert figures["completed"] == 6


def test_chat_sends_text_and_shared_prefixes_as_system_messages(capsys) -> None:
    sizes = ("--gsp-num-groups", "2", "--gsp-prompts-per-group", "3", "--gsp-system-prompt-len", "9")
    with fake_openai(lambda request: streamed("a") if "chat" in request.path else whole({}, 404)) as fake:
        figures, said = run(
            fake,
            capsys,
            "--dataset-name",
            "shared-prefix",
            "--backend",
            "openai-chat",
            *sizes,
            "--gsp-output-len",
            "3",
        )
        bodies = [request.body for request in asked(fake)]
    assert figures["completed"] == 6
    assert [message["role"] for message in bodies[0]["messages"]] == ["system", "user"]
    assert len({body["messages"][0]["content"] for body in bodies}) == 2
    assert len({body["messages"][1]["content"] for body in bodies}) == 6
    assert "approximate" in said


def test_header_key_extra_fields_and_base_path_reach_the_server(capsys) -> None:
    with fake_openai(tokens_or(lambda _: completion("a"))) as fake:
        main(
            [
                *("--base-url", fake.url + "/v1/", "--no-calibrate", "--model", "other", *SMALL),
                *(
                    "--api-key",
                    "secret",
                    "--header",
                    "X-Team: blue",
                    "X-Run=7",
                    "--extra-body",
                    '{"top_p": 0.5}',
                ),
            ]
        )
        capsys.readouterr()
        request = asked(fake)[-1]
    assert request.path == "/v1/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert (request.headers["x-team"], request.headers["x-run"]) == ("blue", "7")
    assert (request.body["model"], request.body["top_p"]) == ("other", 0.5)


def test_warm_up_requests_are_not_the_runs_own_and_not_counted(capsys) -> None:
    with fake_openai(tokens_or(lambda _: completion("a"))) as fake:
        figures, _ = run(fake, capsys, *SMALL, "--num-warmups", "2")
        bodies = [request.body for request in asked(fake)]
    assert figures["completed"] == 6
    assert len(bodies) == 8
    assert len({tuple(body["prompt"]) for body in bodies}) == 8
    assert {len(body["prompt"]) for body in bodies} == {12}


TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "recorded"},
    {"role": "user", "content": "two"},
]


def test_multi_turn_feeds_the_generated_answers_back(capsys, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps({"messages": TALK, "max_tokens": 4}) for _ in range(3)))
    jsonl = ("--dataset-name", "jsonl", "--dataset-path", str(path), "--max-concurrency", "1")
    with fake_openai(lambda request: streamed("gene", "rated", str(len(request.body["messages"])))) as fake:
        figures, _ = run(fake, capsys, *jsonl, "--multi-turn")
        first, second = (request.body["messages"] for request in asked(fake)[:2])
    assert (figures["completed"], figures["num_prompts"]) == (6, 6)
    assert first == TALK[:2]
    assert second == [*TALK[:2], {"role": "assistant", "content": "generated2"}, TALK[3]]
    with fake_openai(lambda _: streamed("x")) as fake:
        figures, _ = run(fake, capsys, *jsonl)
        assert [request.body["messages"] for request in asked(fake)] == [TALK] * 3


def test_a_conversation_ends_with_its_first_failure_and_the_rest_is_not_sent(capsys, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": TALK}))
    with fake_openai(lambda _: whole({"error": "no"}, 500)) as fake:
        figures, table = run(
            fake, capsys, "--dataset-name", "custom", "--dataset-path", str(path), "--multi-turn", code=1
        )
    assert (figures["failed"], figures["not_sent"]) == (1, 1)
    assert "1 of 2 not sent" in table


def test_details_of_every_request_on_demand(capsys, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with fake_openai(tokens_or(lambda _: completion("a", "b"))) as fake:
        quick = ["--base-url", fake.url, "--no-calibrate", "--num-warmups", "0"]
        assert main([*quick, *SMALL, "--save-detailed", "--json", str(file)]) == 0
    requests = json.loads(file.read_bytes())["requests"]
    assert len(requests) == 6
    assert all(len(request["itls"]) == 1 and request["error"] is None for request in requests)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (lambda: whole({"error": {"message": "Unauthorized"}}, 401), "give --api-key"),
        (lambda: whole({"error": {"message": "no such model"}}, 404), "no such model"),
        (lambda: [STREAM_HEAD, CLOSE], "the warm-up request failed"),
    ],
)
def test_a_server_that_refuses_the_warm_up_ends_the_run_with_one_line(capsys, answer, line: str) -> None:
    with fake_openai(tokens_or(lambda _: answer())) as fake:
        assert main(["--base-url", fake.url, "--no-calibrate", *SMALL]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert line in said[0]


def test_no_server_is_one_line(capsys) -> None:
    assert main(["--base-url", "http://127.0.0.1:1", *SMALL]) == 1
    assert capsys.readouterr().err.strip() == (
        "penstock bench serve: http://127.0.0.1:1 cannot be reached: nothing listens there"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--request-rate", "0"], "above 0"),
        (["--num-prompts", "many"], "at least 1"),
        (["--percentiles", "50,101"], "from 0 to 100"),
        (["--slo", "speed=3"], "ttft, tpot, e2el"),
        (["--random-range-ratio", "1"], "below 1"),
        (["--dataset-name", "jsonl"], "needs --dataset-path"),
        (["--dataset-path", "x"], "is for --dataset-name jsonl"),
        (["--gsp-num-groups", "3"], "is for --dataset-name shared-prefix"),
        (["--dataset-name", "shared-prefix", "--random-input-len", "3"], "is for --dataset-name random"),
        (["--dataset-name", "shared-prefix", "--num-prompts", "5000"], "more than the 1024 prompts"),
        (["--multi-turn"], "is for --dataset-name jsonl"),
        (["--burstiness", "2"], "give a rate"),
        (["--endpoint", "/v1/embeddings"], "--endpoint"),
        (["--backend", "openai-chat", "--endpoint", "/v1/completions"], "give one"),
        (["--base-url", "http://h", "--port", "3"], "give one"),
        (["--extra-body", "[1]"], "JSON object"),
        (["--header", "novalue"], "NAME=VALUE"),
        (["--save-detailed"], "--json"),
        (["--speed", "3"], "--speed"),
    ],
)
def test_options_that_make_no_sense_are_one_line_and_exit_code_2(
    capsys, arguments: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2
    assert "\n" not in said
    assert complaint in said


def test_a_value_that_cannot_be_used_is_one_line_and_exit_code_2(capsys, tmp_path: Path) -> None:
    for arguments in (
        ["--base-url", "ftp://x"],
        ["--dataset-name", "jsonl", "--dataset-path", str(tmp_path / "no")],
    ):
        with fake_openai(lambda _: streamed("a")) as fake:
            assert main(["--base-url", fake.url, *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert "\n" not in said
        assert arguments[-1] in said


def test_token_ids_to_chat_are_refused_with_the_way_out(capsys, tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"prompt": [1, 2]}')
    with fake_openai(lambda _: streamed("a")) as fake:
        jsonl = ["--dataset-name", "jsonl", "--dataset-path", str(path)]
        assert main(["--base-url", fake.url, *jsonl, "--backend", "openai-chat"]) == 1
    assert "use --endpoint /v1/completions" in capsys.readouterr().err


def test_ctrl_c_ends_the_run_and_reports_what_was_done(capsys) -> None:
    gate = Gate()
    numbers = itertools.count()

    def answer(_: Request) -> Answer:
        return completion("a") if next(numbers) < 2 else completion("a", gate)

    def interrupt() -> None:
        if gate.reached.wait(20):
            os.kill(os.getpid(), signal.SIGINT)

    with fake_openai(tokens_or(answer)) as fake, contextlib.ExitStack() as stack:
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        stack.callback(interrupter.join)
        figures, table = run(fake, capsys, *SMALL, "--max-concurrency", "1", code=130)
        assert fake.left_early.wait(10)
    assert (figures["completed"], figures["failed"], figures["not_sent"]) == (2, 0, 4)
    assert "4 of 6 not sent or unfinished" in table
