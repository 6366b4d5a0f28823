"""The official SDK against the real server, the real engine and the embedded model, over a real socket."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import httpx
import openai
import pytest
from running_server import Running, serve, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve("--dtype", "float32", "--max-num-seqs", "32") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.v1, api_key="not-used", max_retries=0)


def ask(client: openai.OpenAI, text: str, **options: object):
    return client.chat.completions.create(
        model="penstock-demo",
        messages=[{"role": "user", "content": text}],
        **{"temperature": 0, "max_tokens": 24, **options},
    )


def test_embedded_model_answers_a_simple_question(client: openai.OpenAI) -> None:
    reply = ask(client, "What is the capital of France?")
    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_streamed_and_whole_replies_are_the_same_text(client: openai.OpenAI) -> None:
    whole = ask(client, "Count from 1 to 12.", max_tokens=60)
    chunks = list(
        ask(client, "Count from 1 to 12.", max_tokens=60, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[
        0
    ].finish_reason


def test_second_identical_prompt_is_served_from_the_prefix_cache(client: openai.OpenAI) -> None:
    text = "Repeat this: " + "the quick brown fox jumps over the lazy dog " * 8
    first, second = ask(client, text), ask(client, text)
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert second.usage.prompt_tokens_details.cached_tokens % 16 == 0
    assert first.choices[0].message.content == second.choices[0].message.content


def test_a_seed_gives_the_same_sample_alone_and_in_a_batch(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str:
        return (
            ask(client, "Tell me a story.", temperature=1.0, seed=seed, max_tokens=40)
            .choices[0]
            .message.content
        )

    alone = [sample(seed) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(sample, range(6)))
    assert together == alone
    assert len(set(alone)) > 1


def test_several_choices_and_stop_strings(client: openai.OpenAI) -> None:
    reply = ask(client, "Count from 1 to 20.", n=3, stop=["7"], max_tokens=60)
    assert len(reply.choices) == 3
    for choice in reply.choices:
        assert "7" not in choice.message.content
        assert choice.finish_reason == "stop"


def test_logprobs_agree_with_greedy_choice(client: openai.OpenAI) -> None:
    reply = ask(client, "What is the capital of Italy?", logprobs=True, top_logprobs=3)
    for entry in reply.choices[0].logprobs.content:
        assert entry.token == entry.top_logprobs[0].token
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3


def test_completions_echo_with_logprobs_covers_the_prompt(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="penstock-demo", prompt="one two three", max_tokens=2, temperature=0, echo=True, logprobs=2
    )
    choice = reply.choices[0]
    assert choice.text.startswith("one two three")
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.tokens) == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_token_ids_and_batched_prompts_agree_with_text(server: Running, client: openai.OpenAI) -> None:
    texts = ["one two three", "red green blue"]
    ids = [httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    by_text = client.completions.create(model="penstock-demo", prompt=texts, max_tokens=8, temperature=0)
    by_ids = client.completions.create(model="penstock-demo", prompt=ids, max_tokens=8, temperature=0)
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    assert [choice.index for choice in by_text.choices] == [0, 1]


def test_two_hundred_aborted_streams_leave_no_page_held(server: Running, client: openai.OpenAI) -> None:
    def start_and_leave(number: int) -> None:
        stream = ask(
            client,
            f"Count from {number} to 900.",
            max_tokens=400,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        stream.close()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(start_and_leave, range(200)))
    wait_until(
        lambda: server.load()["num_running"] == 0 and server.load()["held_pages"] == 0, "every page to return"
    )
    assert "Paris" in ask(client, "What is the capital of France?").choices[0].message.content


def test_health_ready_and_one_token_through_the_engine(server: Running) -> None:
    for path in ("/health", "/ready", "/health_generate"):
        assert httpx.get(server.url + path, timeout=30).status_code == 200


def test_dashboards_find_the_metrics_they_read(server: Running, client: openai.OpenAI) -> None:
    before = server.metric("vllm:generation_tokens_total")
    reply = ask(client, "What is the capital of Spain?")
    wait_until(
        lambda: server.metric("vllm:generation_tokens_total") == before + reply.usage.completion_tokens,
        "the engine's counters",
    )
    assert server.metric("vllm:time_to_first_token_seconds_count") > 0
    assert server.metric("vllm:inter_token_latency_seconds_bucket", le="0.0005") >= 0
    assert server.metric("vllm:request_success_total", finished_reason="stop") > 0
    phases = ("imports", "config", "kernels", "weights", "kv_cache", "warm_up", "front_end", "total")
    seconds = {phase: server.metric("startup_time_seconds", phase=phase) for phase in phases}
    assert 0 < seconds["front_end"] < seconds["total"] < 24 * 3600
    assert 0 < seconds["imports"] < seconds["total"]
    assert sum(seconds[phase] for phase in phases[:6]) <= seconds["total"]
