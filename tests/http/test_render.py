"""What a request would be sent to the model as: /tokenize, /detokenize, /tokenizer_info, the render endpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from http_family import MODEL, Family, family
from tiny_tokenizer import CHATML

USER = [{"role": "user", "content": "Hello there"}]
PROMPT = "<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def served() -> Iterator[Family]:
    with family() as running:
        yield running


def post(served: Family, path: str, **body: object):
    reply = served.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def sent(served: Family, path: str, **body: object) -> list[int]:
    """The tokens of the prompt that the engine is really given."""
    post(served, path, max_tokens=1, **body)
    submit = served.engine.seen.submits[-1]
    return memoryview(submit.tokens).cast("i").tolist()[: submit.num_prompt_tokens]


CHATS = [
    {},
    {"add_generation_prompt": False},
    {"chat_template_kwargs": {"thinking": True}},
    {"tools": [TOOL]},
    {"messages": [*USER, {"role": "assistant", "content": "I am"}], "continue_final_message": True},
    {"truncate_prompt_tokens": 4},
]


@pytest.mark.parametrize("fields", CHATS, ids=str)
def test_a_rendered_chat_is_what_the_engine_is_given(served: Family, fields: dict) -> None:
    body = {"messages": USER, **fields}
    before = len(served.engine.seen.submits)
    rendered = post(served, "/v1/chat/completions/render", **body)
    assert len(served.engine.seen.submits) == before, "rendering runs nothing"
    assert rendered["token_ids"] == sent(served, "/v1/chat/completions", **body)
    assert rendered["prompt"] == served.tokenizer.decode(rendered["token_ids"], skip_special_tokens=False)
    assert rendered["model"] == MODEL
    assert post(served, "/apply-template", **body) == {"prompt": rendered["prompt"]}


@pytest.mark.parametrize("fields", CHATS[:-1], ids=str)
def test_tokenize_counts_a_chat_as_the_engine_will(served: Family, fields: dict) -> None:
    body = {"messages": USER, **fields}
    reply = post(served, "/tokenize", **body, return_token_strs=True)
    assert reply["tokens"] == sent(served, "/v1/chat/completions", **body)
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["max_model_len"] == 256
    assert reply["token_strs"][0] == "<|im_start|>"
    assert post(served, "/detokenize", tokens=reply["tokens"])["prompt"] == served.tokenizer.decode(
        reply["tokens"], skip_special_tokens=False
    )


def test_rendered_prompts_are_what_the_engine_is_given(served: Family) -> None:
    rendered = post(served, "/v1/completions/render", prompt=["Hello", "one two"])
    assert [each["prompt"] for each in rendered] == ["Hello", "one two"]
    assert [each["token_ids"] for each in rendered] == [served.ids("Hello"), served.ids("one two")]
    (cut,) = post(served, "/v1/completions/render", prompt=[5, 6, 7, 8], truncate_prompt_tokens=2)
    assert cut["token_ids"] == sent(served, "/v1/completions", prompt=[5, 6, 7, 8], truncate_prompt_tokens=2)


def test_a_chat_that_would_be_refused_is_not_rendered(served: Family) -> None:
    for path in ("/v1/chat/completions/render", "/apply-template"):
        reply = served.client.post(path, json={"messages": USER, "temperature": -1})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "temperature")


def test_tokenizer_info_tells_what_the_files_declare(served: Family) -> None:
    reply = served.client.get("/tokenizer_info")
    assert reply.status_code == 200
    info = reply.json()
    assert info["chat_template"] == CHATML
    assert info["eos_token"] == "<|im_end|>"
    assert info["vocab_size"] == served.tokenizer.get_vocab_size()
    assert info["tokenizer_class"]


def test_the_names_that_hugging_faces_client_makes_up_mean_the_served_model(served: Family) -> None:
    for name in ("dummy", "tgi"):
        assert post(served, "/v1/chat/completions", model=name, messages=USER, max_tokens=1)["model"] == MODEL
    assert served.client.get("/v1/models/other").status_code == 404
