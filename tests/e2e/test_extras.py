"""What may not come does not come, loops end, prompts are scored: the real server, engine and embedded model."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from running_server import Running, serve

FRANCE = "What is the capital of France?"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve("--dtype", "float32", "--max-num-seqs", "8") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.v1, api_key="not-used", max_retries=0)


def ask(client: openai.OpenAI, **more: object):
    return client.chat.completions.create(
        model="penstock-demo",
        messages=[{"role": "user", "content": FRANCE}],
        temperature=0,
        max_tokens=24,
        extra_body=more,
    )


def tokens_of(server: Running, text: str) -> list[int]:
    body = {"prompt": text, "add_special_tokens": False}
    tokens: list[int] = httpx.post(f"{server.url}/tokenize", json=body).json()["tokens"]
    return tokens


def test_a_bad_word_is_avoided(client: openai.OpenAI) -> None:
    assert "Paris" in ask(client).choices[0].message.content
    other = ask(client, bad_words=["Paris"]).choices[0].message.content
    assert other
    assert "Paris" not in other


def test_only_allowed_tokens_come_and_a_loop_of_them_ends(server: Running, client: openai.OpenAI) -> None:
    allowed = sorted({token for text in (" yes", " no") for token in tokens_of(server, text)})
    free = ask(client, allowed_token_ids=allowed, return_token_ids=True).choices[0]
    assert free.finish_reason == "length"
    assert set(free.token_ids) <= set(allowed)
    detection = {"max_pattern_size": 4, "min_count": 3}
    ended = ask(
        client, allowed_token_ids=allowed[:1], repetition_detection=detection, return_token_ids=True
    ).choices[0]
    assert ended.finish_reason == "repetition"
    assert ended.token_ids == allowed[:1] * 3


def test_prompt_logprobs_are_those_of_echo_and_of_the_greedy_answer(server: Running) -> None:
    prompt = {
        "model": "penstock-demo",
        "prompt": "one two three four five",
        "temperature": 0,
        "max_tokens": 1,
    }
    asked = {**prompt, "echo": True, "logprobs": 2, "prompt_logprobs": 2}
    for _ in range(2):  # the second time the prompt is cached, and scored all the same
        (choice,) = httpx.post(f"{server.v1}/completions", json=asked, timeout=60).json()["choices"]
        scored, echoed = choice["prompt_logprobs"], choice["logprobs"]["token_logprobs"]
        tokens = tokens_of(server, prompt["prompt"])
        assert scored[0] is None
        own = [entry[str(token)] for entry, token in zip(scored[1:], tokens[1:], strict=True)]
        assert [entry["logprob"] for entry in own] == pytest.approx(echoed[1 : len(tokens)])
        for entry, mine in zip(scored[1:], own, strict=True):
            better = [each for each in entry.values() if each["logprob"] > mine["logprob"]]
            assert mine["rank"] > len(better)
            assert mine["rank"] == len(better) + 1 or len(better) == 2


def test_inference_client_generates_and_chats(server: Running) -> None:
    client = InferenceClient(base_url=server.url, timeout=60)
    answer = client.text_generation("one two three", max_new_tokens=8, details=True)
    pieces = client.text_generation("one two three", max_new_tokens=8, stream=True)
    assert "".join(pieces) == answer.generated_text
    assert answer.details.generated_tokens == len(answer.details.tokens) <= 8
    reply = client.chat_completion([{"role": "user", "content": FRANCE}], max_tokens=24, temperature=0)
    assert "Paris" in reply.choices[0].message.content
