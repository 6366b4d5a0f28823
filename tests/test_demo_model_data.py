"""The text of the demonstration model: held-out questions, checks, and the chat template."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from tools.demo_model.checks import passes  # noqa: E402
from tools.demo_model.render import render  # noqa: E402
from tools.demo_model.text import KINDS, Dialogue, held_out_questions, training_dialogues  # noqa: E402

SHIPPED = ROOT / "server" / "demo_model"
HELD_OUT_EACH = 60
TRAINING_SAMPLE = 30_000


def asked(dialogue: Dialogue) -> str:
    """What the last answer depends on in its own exchange: system prompt of its kind, and question."""
    messages = dialogue.last.messages
    question = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    system = messages[0]["content"] if dialogue.kind in ("system prompt", "JSON answers") else ""
    kept = "".join(c for c in f"{system} {question}".casefold() if c.isalnum() or c.isspace())
    return " ".join(kept.split())


def test_no_held_out_question_is_a_training_question() -> None:
    trained = {asked(d) for d in itertools.islice(training_dialogues("train 0 0"), TRAINING_SAMPLE)}
    held_out = {asked(d) for kind in KINDS for d in held_out_questions(kind, HELD_OUT_EACH, seed=1)}
    assert not trained & held_out


@pytest.mark.parametrize("kind", KINDS)
def test_reference_answer_passes_its_own_check(kind: str) -> None:
    for dialogue in held_out_questions(kind, HELD_OUT_EACH, seed=2):
        last = dialogue.last.messages[-1]
        reply = render([last]).removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")
        assert passes(dialogue.last.check, reply), (dialogue.last.check, reply)
        assert not passes(dialogue.last.check, "I like trains.")


def test_same_seed_gives_the_same_text() -> None:
    first, second = (
        [d.last.messages for d in itertools.islice(training_dialogues("seed"), 200)] for _ in range(2)
    )
    assert first == second


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Grüße 😀 漢字"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "é"}'}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": {"y": 2}}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "one"},
    {"role": "tool", "tool_call_id": "2", "content": "two"},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
]


def test_template_accepts_string_and_object_arguments_and_groups_tool_results() -> None:
    text = render(CONVERSATION, TOOLS, add_generation_prompt=True)
    assert '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n<tool_call>' in text
    assert '{"name": "g", "arguments": {"y": 2}}' in text
    assert text.count("<|im_start|>user\n<tool_response>") == 1
    assert text.endswith("</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert json.dumps(TOOLS[0]["function"]) in text


def test_template_works_without_system_message_and_tools() -> None:
    assert render([{"role": "user", "content": "Hi"}], add_generation_prompt=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_shipped_tokenizer_renders_as_training_did_and_round_trips() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    text = tokenizer.apply_chat_template(
        CONVERSATION, tools=TOOLS, add_generation_prompt=True, tokenize=False
    )
    assert text == render(CONVERSATION, TOOLS, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert "<tool_call>" in tokenizer.decode(ids, skip_special_tokens=True)
    assert "<|im_start|>" not in tokenizer.decode(ids, skip_special_tokens=True)
