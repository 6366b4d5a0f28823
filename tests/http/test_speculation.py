"""What became of drafts is told: in /metrics over all lives of an engine, in the log, and in answers that ask for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from http_family import MODEL, Family, family, wait_until
from penstock.scheduler.messages import EngineLoad
from penstock.server.metrics.stats_line import describe

CHAT, TEXT, SGLANG = "/v1/chat/completions", "/v1/completions", "/generate"
ASKED = {"model": MODEL, "temperature": 0, "max_tokens": 7, "ignore_eos": True}
MESSAGES = {"messages": [{"role": "user", "content": "Hello there"}]}
DRAFTS = 4
LOAD: dict[str, Any] = {
    "num_drafts": 10,
    "num_draft_tokens": 40,
    "num_accepted_tokens": 14,
    "accepted_at": [7, 4, 3],
    "draft_seconds": 0.25,
    "verify_steps": 6,
    "verify_step_seconds": 0.5,
    "draft_length": 3.5,
}


@pytest.fixture
def drafting() -> Iterator[Family]:
    with family(engine={"drafts": DRAFTS, "tokens_per_step": 3}) as running:
        yield running


def post(served: Family, path: str, **body: Any) -> dict[str, Any]:
    reply = served.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def chunks(served: Family, path: str, **body: Any) -> list[dict[str, Any]]:
    with served.client.stream("POST", path, json={**body, "stream": True}) as reply:
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


# ------------------------------------------------------------------------------------------------------------- /metrics


def test_counters_go_on_when_another_engine_takes_over(drafting: Family) -> None:
    metric = drafting.metric
    drafting.engine.report(**LOAD)
    wait_until(lambda: metric("vllm:spec_decode_num_drafts_total") == 10, "the first report")
    drafting.engine.stop()
    drafting.new_engine(2, drafts=DRAFTS)
    drafting.engine.report(**{**LOAD, "accepted_at": [5, 5, 2, 2]})
    wait_until(lambda: metric("vllm:spec_decode_num_drafts_total") == 20, "the second report")
    assert metric("vllm:spec_decode_num_draft_tokens_total") == 80
    assert metric("vllm:spec_decode_num_accepted_tokens_total") == 28
    at = [metric("vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(i)) for i in range(5)]
    assert at == [12, 9, 5, 2, 0]
    assert metric("penstock:draft_seconds_total") == 0.5
    assert metric("penstock:verify_steps_total") == 12
    assert metric("penstock:verify_step_seconds_total") == 1.0
    assert metric("penstock:draft_length") == 3.5
    # 20 drafts: 8 brought one token, 3 two, 4 three, 3 four, 2 five.
    lengths = [metric("penstock:acceptance_length_bucket", le=f"{i}.0") for i in range(1, 7)]
    assert lengths == [8, 11, 15, 18, 20, 20]
    assert metric("penstock:acceptance_length_count") == 20
    assert metric("penstock:acceptance_length_sum") == 20 + 28


def test_rates_are_of_the_last_minute(drafting: Family) -> None:
    metric = drafting.metric
    assert metric("speculation_rate") == metric("sglang:spec_accept_length") == 0
    drafting.engine.report(**LOAD)
    wait_until(lambda: metric("speculation_rate") > 0, "the report")
    assert metric("speculation_rate") == pytest.approx(100 * 14 / 40)
    assert metric("sglang:spec_accept_rate") == pytest.approx(14 / 40)
    assert metric("sglang:spec_accept_length") == pytest.approx(1 + 14 / 10)


def test_every_configured_position_is_there_before_the_first_draft(drafting: Family) -> None:
    text = drafting.client.get("/metrics").text
    for position in range(DRAFTS):
        assert f'per_pos_total{{engine="0",model_name="{MODEL}",position="{position}"}} 0.0' in text
    assert f'position="{DRAFTS}"' not in text


def test_the_log_line_tells_acceptance_where_there_may_be_drafts() -> None:
    before, load = EngineLoad(**LOAD), EngineLoad(num_drafts=14, num_draft_tokens=50, num_accepted_tokens=20)
    assert describe(load, before, 10.0, drafts=True).endswith(
        ", drafts accepted 60.0%, acceptance length 2.50"
    )
    assert describe(before, before, 10.0, drafts=True).endswith(", no drafts")
    assert "draft" not in describe(load, before, 10.0)


# ------------------------------------------------------------------------------------------------------------ one request

# Seven tokens come as three, three and one.
COUNTED = {
    "mean_acceptance_length": pytest.approx(1 + 4 / 3),
    "draft_acceptance_rate": pytest.approx(4 / 12),
    "acceptance_histogram": [1, 0, 2, 0, 0],
    "num_spec_steps": 3,
    "num_accepted_draft_tokens": 4,
    "num_draft_tokens": 12,
    "num_spec_tokens": DRAFTS,
}


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, MESSAGES), (TEXT, {"prompt": "Hello"})])
def test_an_answer_has_metrics_if_asked(drafting: Family, path: str, prompt: dict[str, Any]) -> None:
    assert "metrics" not in post(drafting, path, **ASKED, **prompt)
    metrics = post(drafting, path, **ASKED, **prompt, return_metrics=True)["metrics"]
    assert metrics["speculative_decoding"] == COUNTED
    names = ("time_to_first_token_ms", "generation_time_ms", "mean_itl_ms", "tokens_per_second")
    assert all(metrics[name] > 0 for name in names)
    assert metrics["queue_time_ms"] == pytest.approx(1.0)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize(("path", "prompt"), [(CHAT, MESSAGES), (TEXT, {"prompt": "Hello"})])
def test_a_stream_ends_with_them(drafting: Family, path: str, prompt: dict[str, Any], usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    *others, last = chunks(drafting, path, **ASKED, **prompt, **options, return_metrics=True)
    assert last["choices"] == []
    assert last["metrics"]["speculative_decoding"] == COUNTED
    assert ("usage" in last) == usage
    assert all("metrics" not in chunk for chunk in others)
    assert all(chunk["choices"] for chunk in others)


def test_choices_are_counted_together(drafting: Family) -> None:
    metrics = post(drafting, CHAT, **ASKED, **MESSAGES, n=2, return_metrics=True)["metrics"]
    assert metrics["speculative_decoding"] == {
        **COUNTED,
        "acceptance_histogram": [2, 0, 4, 0, 0],
        "num_spec_steps": 6,
        "num_accepted_draft_tokens": 8,
        "num_draft_tokens": 24,
    }


def test_what_a_stop_string_cut_was_verified_all_the_same(drafting: Family) -> None:
    whole = post(drafting, TEXT, **ASKED, prompt="Hello", return_token_ids=True)["choices"][0]
    stop = drafting.tokenizer.decode(whole["token_ids"][3:4])
    metrics = post(drafting, TEXT, **ASKED, prompt="Hello", stop=stop, return_metrics=True)["metrics"]
    assert metrics["speculative_decoding"]["acceptance_histogram"] == [0, 0, 2, 0, 0]


def test_an_answer_that_a_second_engine_ends_counts_what_both_verified(drafting: Family) -> None:
    drafting.engine.allow(1)
    asked = {**ASKED, **MESSAGES, "stream": True, "return_metrics": True}
    with drafting.client.stream("POST", CHAT, json=asked) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: ")
        drafting.engine.wait_for(lambda: drafting.engine.steps_allowed == 0, "its step")
        drafting.engine.stop()
        drafting.new_engine(2, drafts=DRAFTS, tokens_per_step=4)
        last = [line for line in lines if line.startswith("data: {")][-1]
    counted = json.loads(last.removeprefix("data: "))["metrics"]["speculative_decoding"]
    assert counted["acceptance_histogram"] == [0, 0, 1, 1, 0]


def test_without_speculation_there_is_nothing_to_tell_of_it() -> None:
    with family() as served:
        assert (
            "speculative_decoding"
            not in post(served, CHAT, **ASKED, **MESSAGES, return_metrics=True)["metrics"]
        )
        answer = post(served, SGLANG, text="Hello", sampling_params={"max_new_tokens": 3})
        assert not any(name.startswith("spec_") for name in answer["meta_info"])
        assert served.metric("vllm:spec_decode_num_drafts_total") == 0


def test_sglangs_meta_info_has_its_own_words(drafting: Family) -> None:
    how = {"max_new_tokens": 7, "temperature": 0, "ignore_eos": True}
    meta = post(drafting, SGLANG, text="Hello", sampling_params=how)["meta_info"]
    assert {name: meta[name] for name in meta if name.startswith("spec_")} == {
        "spec_verify_ct": 3,
        "spec_accept_length": pytest.approx(1 + 4 / 3),
        "spec_accept_rate": pytest.approx(4 / 12),
        "spec_num_correct_drafts": 4,
        "spec_num_proposed_drafts": 12,
        "spec_correct_drafts_histogram": [1, 0, 2, 0, 0],
    }


def test_a_response_has_no_place_for_metrics(drafting: Family) -> None:
    reply = drafting.client.post("/v1/responses", json={"input": "x", "return_metrics": True})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "return_metrics"
