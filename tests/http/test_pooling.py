"""Embeddings, reranking, scores and classes over HTTP: their shapes, and every refusal by name."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fake_pooling import CLASSIFIER, CROSS_ENCODER, EMBEDDER, fake_values
from http_family import Family, family, wait_until
from penstock.scheduler.messages import PoolingInfo, PoolingParams, Rejected, Submit

TEXTS = ["Hello there", "The quick brown fox", "one two three"]


@pytest.fixture(scope="module")
def embedder() -> Iterator[Family]:
    with family(engine=EMBEDDER) as running:
        yield running


@pytest.fixture(scope="module")
def cross_encoder() -> Iterator[Family]:
    with family(engine=CROSS_ENCODER) as running:
        yield running


@pytest.fixture(scope="module")
def classifier() -> Iterator[Family]:
    with family(engine=CLASSIFIER) as running:
        yield running


@pytest.fixture(scope="module")
def generator() -> Iterator[Family]:
    with family() as running:
        yield running


def expected(served: Family, tokens: list[int], params: PoolingParams) -> np.ndarray:
    assert served.engine.info.pooling is not None
    return fake_values(np.array(tokens, "<i4").tobytes(), params, served.engine.info.pooling)


def embedding(served: Family, text: str, **params: Any) -> np.ndarray:
    return expected(served, served.ids(text), PoolingParams(task="embed", **params))


def refused(reply: httpx.Response, param: str, *words: str, status: int = 400) -> None:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert error["param"] == param
    assert all(word in error["message"] for word in words), error["message"]


# ------------------------------------------------------------------------------------------------------ embeddings


def test_the_four_forms_of_input_give_their_embeddings(embedder: Family) -> None:
    ids = [embedder.ids(text) for text in TEXTS]
    for given, texts in ((TEXTS[0], TEXTS[:1]), (TEXTS, TEXTS), (ids[0], TEXTS[:1]), (ids, TEXTS)):
        reply = embedder.client.post("/v1/embeddings", json={"model": "tiny", "input": given}).json()
        assert reply["object"] == "list"
        assert reply["model"] == "tiny"
        assert [each["index"] for each in reply["data"]] == list(range(len(texts)))
        assert {each["object"] for each in reply["data"]} == {"embedding"}
        for text, each in zip(texts, reply["data"], strict=True):
            np.testing.assert_array_equal(np.float32(each["embedding"]), embedding(embedder, text))
        count = sum(len(embedder.ids(text)) for text in texts)
        assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] == count


def test_the_openai_sdk_reads_numbers_and_base64(embedder: Family) -> None:
    client = openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0)
    by_default = client.embeddings.create(model="tiny", input=TEXTS)  # the SDK asks for base64
    as_numbers = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    for text, one, other in zip(TEXTS, by_default.data, as_numbers.data, strict=True):
        np.testing.assert_array_equal(np.float32(one.embedding), embedding(embedder, text))
        np.testing.assert_array_equal(np.float32(other.embedding), embedding(embedder, text))


def test_base64_is_little_endian_float32(embedder: Family) -> None:
    body = {"input": TEXTS[0], "encoding_format": "base64"}
    (data,) = embedder.client.post("/v1/embeddings", json=body).json()["data"]
    values = np.frombuffer(base64.b64decode(data["embedding"]), "<f4")
    np.testing.assert_array_equal(values, embedding(embedder, TEXTS[0]))


def test_dimensions_and_normalisation_reach_the_engine(embedder: Family) -> None:
    body = {"input": TEXTS[0], "dimensions": 4}
    (data,) = embedder.client.post("/v1/embeddings", json=body).json()["data"]
    np.testing.assert_array_equal(np.float32(data["embedding"]), embedding(embedder, TEXTS[0], dimensions=4))
    for name in ("normalize", "use_activation"):
        (data,) = embedder.client.post("/v1/embeddings", json={"input": TEXTS[0], name: False}).json()["data"]
        np.testing.assert_array_equal(
            np.float32(data["embedding"]), embedding(embedder, TEXTS[0], normalize=False)
        )


def test_a_size_the_model_was_not_made_for_is_refused(embedder: Family) -> None:
    post = embedder.client.post
    refused(post("/v1/embeddings", json={"input": "hi", "dimensions": 9}), "dimensions", "9", "8")
    refused(post("/v1/embeddings", json={"input": "hi", "dimensions": 5}), "dimensions", "4, 8")
    assert post("/v1/embeddings", json={"input": "hi", "dimensions": 8}).status_code == 200


def test_a_model_that_declares_no_sizes_is_not_cut() -> None:
    generate_and_embed = {"tasks": ("generate", "embed"), "pooling": PoolingInfo(embedding_size=8)}
    with family(engine=generate_and_embed) as both:
        reply = both.client.post("/v1/embeddings", json={"input": "hi", "dimensions": 4})
        refused(reply, "dimensions", "is_matryoshka")
        assert both.client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize(
    ("side", "kept"), [(None, slice(0, 5)), ("right", slice(0, 5)), ("left", slice(-5, None))]
)
@pytest.mark.parametrize("as_tokens", [True, False])
def test_long_inputs_are_cut_where_asked(
    embedder: Family, side: str | None, kept: slice, as_tokens: bool
) -> None:
    text = "one two three four five six seven eight nine ten"
    ids = embedder.ids(text)
    body = {"input": ids if as_tokens else text, "truncate_prompt_tokens": 5, "truncation_side": side}
    reply = embedder.client.post("/v1/embeddings", json=body).json()
    assert reply["usage"]["prompt_tokens"] == 5
    wanted = expected(embedder, ids[kept], PoolingParams(task="embed"))
    np.testing.assert_array_equal(np.float32(reply["data"][0]["embedding"]), wanted)


def test_minus_one_cuts_to_what_the_model_reads(embedder: Family) -> None:
    body = {"input": ["word " * 400, "hi"], "truncate_prompt_tokens": -1}
    reply = embedder.client.post("/v1/embeddings", json=body).json()
    assert reply["usage"]["prompt_tokens"] == 256 + len(embedder.ids("hi"))


def test_a_long_input_is_refused_with_both_numbers(embedder: Family) -> None:
    reply = embedder.client.post("/v1/embeddings", json={"input": ["hi", [5] * 300]})
    refused(reply, "input[1]")
    reply = embedder.client.post("/v1/embeddings", json={"input": [[5], [5] * 300]})
    refused(reply, "input[1]", "300", "256", "truncate_prompt_tokens")


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("input", {}),
        ("input", {"input": None}),
        ("input", {"input": []}),
        ("input", {"input": ""}),
        ("input[1]", {"input": ["hi", ""]}),
        ("input[0]", {"input": [[]]}),
        ("input", {"input": 7}),
        ("input", {"input": {"text": "hi"}}),
        ("input[1]", {"input": ["hi", 7]}),
        ("input[0]", {"input": [-1]}),
        ("input", {"input": [99_999]}),
        ("input[1]", {"input": [[1], [99_999]]}),
        ("input", {"input": ["hi"] * 3000}),
        ("encoding_format", {"input": "hi", "encoding_format": "hex"}),
        ("dimensions", {"input": "hi", "dimensions": 0}),
        ("dimensions", {"input": "hi", "dimensions": "4"}),
        ("truncate_prompt_tokens", {"input": "hi", "truncate_prompt_tokens": 0}),
        ("truncate_prompt_tokens", {"input": "hi", "truncate_prompt_tokens": 257}),
        ("truncate_prompt_tokens", {"input": "hi", "truncate_prompt_tokens": -2}),
        ("truncation_side", {"input": "hi", "truncation_side": "middle"}),
        ("embed_dtype", {"input": "hi", "embed_dtype": "int8"}),
        ("priority", {"input": "hi", "priority": 2**40}),
        ("model", {"input": "hi", "model": "another"}),
    ],
)
def test_malformed_embedding_requests_are_refused_by_name(
    embedder: Family, param: str, body: dict[str, Any]
) -> None:
    refused(embedder.client.post("/v1/embeddings", json=body), param, status=404 if param == "model" else 400)


def test_priority_and_salt_go_with_every_prompt(embedder: Family) -> None:
    before = len(embedder.engine.seen.submits)
    body = {"input": TEXTS, "priority": 3, "cache_salt": "mine"}
    embedder.client.post("/v1/embeddings", json=body)
    submits = embedder.engine.seen.submits[before:]
    assert [(submit.priority, submit.cache_salt) for submit in submits] == [(3, "mine")] * 3


def test_pooled_prompts_are_counted(embedder: Family) -> None:
    def counts() -> list[float]:
        return [
            embedder.metric("penstock:pooled_prompts_total", task="embed"),
            embedder.metric("vllm:prompt_tokens_total"),
            embedder.metric("vllm:e2e_request_latency_seconds_count"),
            embedder.metric("vllm:request_success_total", finished_reason="stop"),
        ]

    before = counts()
    embedder.client.post("/v1/embeddings", json={"input": TEXTS})
    tokens = sum(len(embedder.ids(text)) for text in TEXTS)
    assert [new - old for old, new in zip(before, counts(), strict=True)] == [3, tokens, 3, 3]
    assert embedder.metric("concurrent_requests") == 0


# ------------------------------------------------------------------------------------------- reranking and scores


def pair_score(served: Family, first: str, second: str, **params: Any) -> float:
    """The fake's tokenizer has no separators and one type."""
    tokens = served.ids(first) + served.ids(second)
    return float(expected(served, tokens, PoolingParams(task="classify", **params))[0])


def test_jina_and_cohere_get_their_shapes(cross_encoder: Family) -> None:
    scores = [pair_score(cross_encoder, "which fox", text) for text in TEXTS]
    order = sorted(range(3), key=lambda index: -scores[index])
    body = {"model": "tiny", "query": "which fox", "documents": TEXTS}
    for path, shown in (("/rerank", True), ("/v1/rerank", True), ("/v2/rerank", False)):
        reply = cross_encoder.client.post(path, json=body).json()
        assert reply["id"].startswith("rerank-")
        assert reply["model"] == "tiny"
        assert [each["index"] for each in reply["results"]] == order
        assert [each["relevance_score"] for each in reply["results"]] == [scores[index] for index in order]
        for each in reply["results"]:
            assert each.get("document") == ({"text": TEXTS[each["index"]]} if shown else None)
        assert reply["usage"]["total_tokens"] == reply["meta"]["tokens"]["input_tokens"] > 0
        assert reply["meta"]["api_version"]["version"] == ("2" if path == "/v2/rerank" else "1")


def test_rerank_options(cross_encoder: Family) -> None:
    documents: list[Any] = [TEXTS[0], {"text": TEXTS[1], "title": "a fox"}, TEXTS[2]]
    body = {"query": "which fox", "documents": documents, "top_n": 2}
    whole = cross_encoder.client.post("/rerank", json={**body, "top_n": 0}).json()["results"]
    assert cross_encoder.client.post("/rerank", json=body).json()["results"] == whole[:2]
    bare = cross_encoder.client.post("/rerank", json={**body, "return_documents": False}).json()["results"]
    assert all("document" not in each for each in bare)
    full = cross_encoder.client.post("/v2/rerank", json={**body, "return_documents": True}).json()["results"]
    assert full == whole[:2]
    raw = cross_encoder.client.post("/rerank", json={**body, "use_activation": False}).json()["results"]
    best = raw[0]["index"]
    assert raw[0]["relevance_score"] == pair_score(cross_encoder, "which fox", TEXTS[best], activation=False)


def test_documents_are_cut_to_the_tokens_asked_for(cross_encoder: Family) -> None:
    text = "one two three four five six seven eight nine ten"
    query = cross_encoder.ids("which fox")
    body = {"query": "which fox", "documents": [text, "hi"], "max_tokens_per_doc": 4}
    usage = cross_encoder.client.post("/rerank", json=body).json()["usage"]
    assert usage["prompt_tokens"] == 2 * len(query) + 4 + len(cross_encoder.ids("hi"))


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("query", {"documents": TEXTS}),
        ("documents", {"query": "hi"}),
        ("documents", {"query": "hi", "documents": []}),
        ("documents", {"query": "hi", "documents": "hi"}),
        ("documents[1]", {"query": "hi", "documents": ["hi", 7]}),
        ("documents[0].text", {"query": "hi", "documents": [{"title": "hi"}]}),
        ("documents[1]", {"query": "hi", "documents": ["hi", "word " * 300]}),
        ("top_n", {"query": "hi", "documents": ["hi"], "top_n": -1}),
    ],
)
def test_malformed_rerank_requests_are_refused_by_name(
    cross_encoder: Family, param: str, body: dict[str, Any]
) -> None:
    refused(cross_encoder.client.post("/v1/rerank", json=body), param)


def test_scores_of_one_with_many_and_of_pairs(cross_encoder: Family) -> None:
    one_with_many = {"text_1": "which fox", "text_2": TEXTS}
    pairs = {"text_1": TEXTS, "text_2": TEXTS[::-1]}
    by_other_names = {"queries": "which fox", "documents": TEXTS}
    single = {"text_1": "which fox", "text_2": TEXTS[1]}
    for path in ("/score", "/v1/score"):
        for body, lefts, rights in (
            (one_with_many, ["which fox"] * 3, TEXTS),
            (by_other_names, ["which fox"] * 3, TEXTS),
            (pairs, TEXTS, TEXTS[::-1]),
            (single, ["which fox"], TEXTS[1:2]),
        ):
            reply = cross_encoder.client.post(path, json=body).json()
            wanted = [
                pair_score(cross_encoder, left, right) for left, right in zip(lefts, rights, strict=True)
            ]
            assert [each["score"] for each in reply["data"]] == wanted
            assert [(each["index"], each["object"]) for each in reply["data"]] == [
                (index, "score") for index in range(len(wanted))
            ]


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("text_1", {"text_2": "hi"}),
        ("text_2", {"text_1": "hi"}),
        ("text_1", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}),
        ("queries", {"queries": ["a", "b"], "documents": "c"}),
        ("text_1", {"text_1": "a", "queries": "a", "text_2": "b"}),
        ("text_2", {"text_1": "a", "text_2": []}),
        ("text_2[1]", {"text_1": "a", "text_2": ["b", 3]}),
    ],
)
def test_malformed_score_requests_are_refused_by_name(
    cross_encoder: Family, param: str, body: dict[str, Any]
) -> None:
    refused(cross_encoder.client.post("/v1/score", json=body), param)


def test_an_embedder_scores_by_cosine(embedder: Family) -> None:
    query = embedding(embedder, "which fox")
    wanted = [float(query @ embedding(embedder, text)) for text in TEXTS]
    reply = embedder.client.post("/score", json={"text_1": "which fox", "text_2": TEXTS}).json()
    np.testing.assert_allclose([each["score"] for each in reply["data"]], wanted, atol=1e-6)
    reply = embedder.client.post("/rerank", json={"query": "which fox", "documents": TEXTS}).json()
    best = reply["results"][0]
    assert best["index"] == int(np.argmax(wanted))
    assert best["relevance_score"] == pytest.approx(max(wanted), abs=1e-6)


# --------------------------------------------------------------------------------------------------------- classes


def test_classes_have_names_and_probabilities(classifier: Family) -> None:
    for path in ("/classify", "/v1/classify"):
        for given in (TEXTS, [classifier.ids(text) for text in TEXTS]):
            reply = classifier.client.post(path, json={"input": given}).json()
            for index, (text, each) in enumerate(zip(TEXTS, reply["data"], strict=True)):
                probs = expected(classifier, classifier.ids(text), PoolingParams(task="classify"))
                assert each["index"] == index
                assert each["num_classes"] == 3
                np.testing.assert_array_equal(np.float32(each["probs"]), probs)
                assert each["label"] == ["bad", "so-so", "good"][int(np.argmax(probs))]
    raw = classifier.client.post("/classify", json={"input": TEXTS[0], "use_activation": False}).json()
    logits = expected(classifier, classifier.ids(TEXTS[0]), PoolingParams(task="classify", activation=False))
    np.testing.assert_array_equal(np.float32(raw["data"][0]["probs"]), logits)


# -------------------------------------------------------------------------------- what a model cannot do, and faults


def test_a_model_says_what_it_can_do_instead(
    embedder: Family, cross_encoder: Family, classifier: Family, generator: Family
) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    for served in (embedder, classifier):
        refused(served.client.post("/v1/completions", json={"prompt": "hi"}), "model", "cannot generate")
        refused(served.client.post("/v1/chat/completions", json=chat), "model", "cannot generate")
    reply = embedder.client.post("/v1/chat/completions", json=chat)
    refused(reply, "model", "it can embed (/v1/embeddings)")
    refused(embedder.client.post("/classify", json={"input": "hi"}), "model", "cannot classify", "embed")
    refused(cross_encoder.client.post("/v1/embeddings", json={"input": "hi"}), "model", "cannot embed")
    score = {"text_1": "a", "text_2": "b"}
    refused(classifier.client.post("/score", json=score), "model", "3 labels", "/classify")
    for path, body in (
        ("/v1/embeddings", {"input": "hi"}),
        ("/classify", {"input": "hi"}),
        ("/score", score),
        ("/rerank", {"query": "a", "documents": ["b"]}),
    ):
        refused(generator.client.post(path, json=body), "model", "it can generate (/v1/chat/completions")


def test_health_generate_asks_a_model_what_it_can(embedder: Family, cross_encoder: Family) -> None:
    for served in (embedder, cross_encoder):
        assert served.client.get("/health_generate").json()["status"] == "ok"


def is_full(submit: Submit) -> Rejected:
    return Rejected(submit.request_id, "queue_full", "the queue is full", 3.0, 4)


def test_a_full_queue_is_a_429_and_the_rest_is_aborted() -> None:
    with family(engine=EMBEDDER) as served:
        served.engine.reject = is_full
        reply = served.client.post("/v1/embeddings", json={"input": TEXTS})
        assert reply.status_code == 429
        assert reply.headers["retry-after"] == "3"
        wait_until(lambda: not served.services.link.num_outstanding, "nothing to be outstanding")


def test_one_request_of_many_inputs_is_never_refused_for_its_size() -> None:
    """The queue takes 4: no more than 2 are with the engine at a time."""
    with family(engine=EMBEDDER) as served:
        engine = served.engine
        most = 0

        def watch(submit: Submit) -> Rejected | None:
            nonlocal most
            most = max(most, len(engine.running) + 1)
            return None

        engine.reject = watch
        texts = [f"{index} two three" for index in range(50)]
        reply = served.client.post("/v1/embeddings", json={"input": texts})
        assert reply.status_code == 200
        for text, each in zip(texts, reply.json()["data"], strict=True):
            np.testing.assert_array_equal(np.float32(each["embedding"]), embedding(served, text))
        assert most == 2


def test_a_queue_that_fills_up_meanwhile_is_asked_again() -> None:
    with family(engine=EMBEDDER) as served:
        engine = served.engine
        engine.reject = lambda submit: is_full(submit) if len(engine.running) else None
        reply = served.client.post("/v1/embeddings", json={"input": [f"{index} two" for index in range(20)]})
        assert reply.status_code == 200
        assert len(reply.json()["data"]) == 20


def test_prompts_survive_the_death_of_their_engine() -> None:
    with family(engine=EMBEDDER) as served:
        served.engine.allow(0)
        with httpx.Client(base_url=served.url, timeout=10) as client:
            replies: list[httpx.Response] = []
            thread = threading.Thread(
                target=lambda: replies.append(client.post("/v1/embeddings", json={"input": TEXTS}))
            )
            thread.start()
            served.engine.wait_for(lambda: len(served.engine.running) == 2, "the prompts")
            served.engine.stop()
            served.supervisor.say("restarting", "it died")
            served.new_engine(2, vocab_size=served.engine.vocab_size, **EMBEDDER)
            thread.join(10)
        (reply,) = replies
        assert reply.status_code == 200
        for text, each in zip(TEXTS, reply.json()["data"], strict=True):
            np.testing.assert_array_equal(np.float32(each["embedding"]), embedding(served, text))


def test_a_client_that_leaves_aborts_its_prompts() -> None:
    with family(engine=EMBEDDER) as served:
        served.engine.allow(0)
        with pytest.raises(httpx.ReadTimeout):
            served.client.post("/v1/embeddings", json={"input": TEXTS}, timeout=0.3)
        served.engine.wait_for(lambda: len(served.engine.seen.aborted) == 2, "the aborts")
        assert not served.services.link.num_outstanding
        served.engine.allow(None)
        assert served.client.post("/v1/embeddings", json={"input": TEXTS}).status_code == 200
        assert served.metric("penstock:client_disconnects_total") == 1


def test_an_engine_that_fails_on_a_prompt_is_a_500() -> None:
    with family(engine=EMBEDDER) as served:
        served.engine.finish_with_error = True
        assert served.client.post("/v1/embeddings", json={"input": TEXTS}).status_code == 500
