"""gpt-oss over a real socket: markers are special tokens, which the reply never shows but the parser must see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from http_family import MODEL, Family, family
from tiny_tokenizer import write_model
from tokenizers import AddedToken, Tokenizer

MARKERS = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|> #}"
)
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    directory = tmp_path_factory.mktemp("gpt-oss")
    tokenizer = write_model(directory)
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory, tokenizer


@pytest.fixture(scope="module")
def served(tokenizer: tuple[Path, Tokenizer]) -> Iterator[Family]:
    with family(chat_template=TEMPLATE, tokenizer_dir=str(tokenizer[0])) as running:
        yield running


def ask(served: Family, tokenizer: Tokenizer, text: str, **options: object) -> dict:
    served.engine.script = tokenizer.encode(text, add_special_tokens=False).ids
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **options}
    reply = served.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_channels_are_told_apart_and_no_marker_shows(
    served: Family, tokenizer: tuple[Path, Tokenizer]
) -> None:
    reply = ask(served, tokenizer[1], THOUGHT + "<|channel|>final<|message|>Hello<|return|>")
    choice = reply["choices"][0]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("Hello", "Hm.")
    assert choice["finish_reason"] == "stop"
    thought = tokenizer[1].encode(THOUGHT.removesuffix("<|start|>assistant"), add_special_tokens=False).ids
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(thought)


def test_a_call_ends_the_answer(served: Family, tokenizer: tuple[Path, Tokenizer]) -> None:
    call = '<|channel|>commentary to=functions.look_up <|constrain|>json<|message|>{"q": 1}<|call|>'
    reply = ask(served, tokenizer[1], THOUGHT + call + "never said", tools=[TOOL])
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "look_up", "arguments": '{"q": 1}'}
    stops = served.engine.seen.submits[-1].sampling.stop_token_ids
    assert {tokenizer[1].token_to_id(name) for name in ("<|call|>", "<|return|>")} <= set(stops)


def test_a_required_call_is_framed_as_one(served: Family, tokenizer: tuple[Path, Tokenizer]) -> None:
    ask(served, tokenizer[1], "x", tools=[TOOL], tool_choice="required")
    grammar = served.engine.seen.submits[-1].sampling.grammar
    assert "<|channel|>commentary to=functions.look_up <|constrain|>json<|message|>" in grammar.text


def test_no_effort_leaves_the_analysis_out(served: Family, tokenizer: tuple[Path, Tokenizer]) -> None:
    ask(served, tokenizer[1], "x", reasoning_effort="none")
    grammar = served.engine.seen.submits[-1].sampling.grammar
    assert "analysis" not in grammar.text
    assert "<|channel|>final<|message|>" in grammar.text
