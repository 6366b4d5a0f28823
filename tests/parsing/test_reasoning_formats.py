"""Thinking is told from the answer the same way however the text is cut, and no text is lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from penstock.server.parsing.events import (
    CallArguments,
    CallStart,
    Content,
    Event,
    Reasoning,
    merged,
)
from penstock.server.parsing.harmony import HarmonyParser
from penstock.server.parsing.reasoning import registry

CHATML = "<|im_start|>assistant\n"
HARMONY = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
KIMI_CALLS = "<|tool_calls_section_begin|>"

# format, end of the prompt, what the model writes, what it means
SAMPLES: list[tuple[str, str, str, list[Event]]] = [
    ("qwen3", CHATML, "<think>\nHm.\nYes\n</think>\n\nHello", [Reasoning("Hm.\nYes"), Content("Hello")]),
    ("qwen3", CHATML, "Hello <think>", [Content("Hello <think>")]),
    ("qwen3", CHATML, "\n <think>Hm</think> Hello\n", [Reasoning("Hm"), Content(" Hello\n")]),
    ("qwen3", CHATML, "<thinking>", [Content("<thinking>")]),
    ("qwen3", CHATML, "<thin", [Content("<thin")]),
    ("qwen3", CHATML, "<think>\n\n</think>\n\nHello", [Content("Hello")]),
    ("qwen3", CHATML, "<think>\nCut off\n</thi", [Reasoning("Cut off\n</thi")]),
    (
        "qwen3",
        CHATML + "<think>\n",
        "Hm </thi nk>\n\n</think>Hello",
        [Reasoning("Hm </thi nk>"), Content("Hello")],
    ),
    ("qwen3", CHATML + "<think>\n", "<think>\nHm</think>Hello", [Reasoning("Hm"), Content("Hello")]),
    ("qwen3", CHATML + "<think>\n\n</think>\n\n", "Hello</think>", [Content("Hello</think>")]),
    ("qwen3-thinking", CHATML + "<think>\n", "Hm</think>", [Reasoning("Hm")]),
    ("deepseek_r1", "<｜Assistant｜>", "Hm</think>\n\nHello", [Reasoning("Hm"), Content("Hello")]),
    ("deepseek-r1", "<｜Assistant｜>", "<think>\nHm\n</think>Hello", [Reasoning("Hm"), Content("Hello")]),
    ("deepseek_r1", "<｜Assistant｜>", "  Hm", [Reasoning("  Hm")]),
    ("deepseek_v3", "<｜Assistant｜></think>", "Hello", [Content("Hello")]),
    ("glm45", "<|assistant|>", "\n<think>Hm</think>\nHello", [Reasoning("Hm"), Content("Hello")]),
    ("glm45", "<|assistant|>\n<think></think>", "\nHello", [Content("\nHello")]),
    ("kimi_k2", "assistant<|im_middle|>", "<think>Hm</think>Hello", [Reasoning("Hm"), Content("Hello")]),
    (
        "kimi_k2",
        "assistant<|im_middle|>",
        "<think>Hm\n" + KIMI_CALLS + "...",
        [Reasoning("Hm"), Content(KIMI_CALLS + "...")],
    ),
    ("minimax_m2", "]~b]ai\n<think>\n", "Hm\n</think>\n\nHello", [Reasoning("Hm"), Content("Hello")]),
    (
        "minimax_m2_append_think",
        "]~b]ai\n<think>\n",
        "Hm\n</think>\n\nHello",
        [Content("<think>Hm\n</think>\n\nHello")],
    ),
    (
        "openai_gptoss",
        HARMONY,
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
        [Reasoning("Hm."), Content("Hello")],
    ),
    (
        "gpt-oss",
        HARMONY,
        "<|channel|>analysis<|message|>One<|end|><|start|>assistant<|channel|>analysis<|message|>Two<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>json<|message|>{}",
        [Reasoning("One\nTwo"), Content("I look.\n{}")],
    ),
    ("openai_gptoss", HARMONY, "Hello, no <|channel at all", [Content("Hello, no <|channel at all")]),
    ("openai_gptoss", HARMONY, " assistants to=x", [Content(" assistants to=x")]),
    ("openai_gptoss", HARMONY, "Hi <|channel|>final<|message|>there", [Content("Hi \nthere")]),
    ("openai_gptoss", HARMONY, "<|channel|>analysis<|message|>Cut", [Reasoning("Cut")]),
    ("openai_gptoss", HARMONY, "<|channel|>ana", []),
    ("openai_gptoss", HARMONY + "<|channel|>final<|message|>", "Hello<|return|>", [Content("Hello")]),
    (
        "openai_gptoss",
        HARMONY,
        "<|channel|>" + "x" * 600 + "<|message|>y",
        [Content("<|channel|>" + "x" * 600 + "<|message|>y")],
    ),
]

# what the model writes with tools, what it means
CALLS: list[tuple[str, list[Event]]] = [
    (
        "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=functions.look_up "
        '<|constrain|>json<|message|>{"q": "<|x"}<|call|>',
        [Reasoning("Hm"), CallStart(0, "look_up"), CallArguments(0, '{"q": "<|x"}')],
    ),
    (
        ' to=functions.a<|channel|>commentary json<|message|> {"b": 1}<|call|>'
        "<|start|>assistant to=functions.c<|channel|>commentary<|message|><|call|>",
        [CallStart(0, "a"), CallArguments(0, '{"b": 1}'), CallStart(1, "c"), CallArguments(1, "{}")],
    ),
    (
        "<|channel|>commentary<|message|>First I look.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.a <|constrain|>json<|message|>{"b',
        [Content("First I look."), CallStart(0, "a"), CallArguments(0, '{"b')],
    ),
    ("<|channel|>analysis to=python code<|message|>1+1<|end|>", [Reasoning("1+1")]),
]


def parse(name: str, prompt: str, pieces: list[str]) -> list[Event]:
    known = registry.find(name)
    assert known is not None
    return run(known.parser(prompt), pieces)


def run(parser: object, pieces: list[str]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += parser.push(piece)
    return merged(events + parser.finish())


@pytest.mark.parametrize(("name", "prompt", "text", "expected"), SAMPLES)
def test_every_cut_gives_the_same_parts(name: str, prompt: str, text: str, expected: list[Event]) -> None:
    assert parse(name, prompt, [text]) == expected
    assert parse(name, prompt, list(text)) == expected
    for cut in range(1, len(text)):
        assert parse(name, prompt, [text[:cut], text[cut:]]) == expected


@pytest.mark.parametrize(("text", "expected"), CALLS)
def test_harmony_calls_are_the_same_at_every_cut(text: str, expected: list[Event]) -> None:
    for cut in range(len(text)):
        assert run(HarmonyParser(HARMONY, tools=True), [text[:cut], text[cut:]]) == expected
    assert run(HarmonyParser(HARMONY, tools=True), list(text)) == expected


def test_harmony_calls_nobody_asked_for_are_content() -> None:
    text = '<|channel|>commentary to=functions.a <|constrain|>json<|message|>{"b": 1}<|call|>'
    assert run(HarmonyParser(HARMONY, tools=False), [text]) == [Content('{"b": 1}')]


WORDS = st.sampled_from(
    [
        *("<think>", "</think>", "<thi", "nk>", "\n", "\n\n", " ", "<", "</", "a", "word ", "é"),
        *("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "assistant", "analysis", "final", "<|", "|>"),
        *("to=functions.f", " ", "commentary", "<|constrain|>json", "<|call|>", "<|return|>", KIMI_CALLS),
    ]
)
PROMPTS = st.sampled_from(["", CHATML, CHATML + "<think>\n", CHATML + "<think></think>\n", HARMONY])


@given(st.sampled_from(registry.NAMES), PROMPTS, st.lists(WORDS, max_size=14), st.data())
def test_any_text_in_any_pieces_gives_the_same_parts(
    name: str, prompt: str, words: list[str], data: st.DataObject
) -> None:
    text = "".join(words)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    edges = sorted({0, len(text), *cuts})
    whole = parse(name, prompt, [text])
    assert parse(name, prompt, [text[start:end] for start, end in pairwise(edges)]) == whole
    assert parse(name, prompt, list(text)) == whole


@given(
    st.sampled_from([name for name in registry.NAMES if "append" not in name]),
    PROMPTS,
    st.lists(WORDS, max_size=14),
)
def test_nothing_but_markers_and_line_ends_is_lost(name: str, prompt: str, words: list[str]) -> None:
    known = registry.find(name)
    assert known is not None
    assume("<|message|>" not in known.markers)  # there headers go too: the next test
    text = "".join(words)
    kept = "".join(event.text for event in parse(name, prompt, [text]))
    assert is_what_is_left(kept, text, ("<think>", "</think>", "\n", " "))


def is_what_is_left(kept: str, text: str, markers: tuple[str, ...]) -> bool:
    """Can `text` become `kept` by leaving markers out?"""
    ends: dict[int, set[int]] = {0: {0}}  # index into the text -> indices into what was kept
    for at in range(len(text) + 1):
        reached = ends.get(at, set())
        for marker in markers:
            if text.startswith(marker, at):
                ends.setdefault(at + len(marker), set()).update(reached)
        if at < len(text):
            ends.setdefault(at + 1, set()).update(
                index + 1 for index in reached if kept[index : index + 1] == text[at]
            )
    return len(kept) in ends.get(len(text), set())


@given(st.text(alphabet="ab <|\n", min_size=1, max_size=40))
def test_text_without_channels_is_content_to_the_last_character(text: str) -> None:
    events = parse("openai_gptoss", HARMONY, [text])
    assert "".join(event.text for event in events) == (text if text.strip() else "")


# model type, a part of the chat template that tells, the format
TEMPLATES = [
    ("qwen3", "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", "qwen3"),
    ("qwen2", "<｜Assistant｜><think>\n", "deepseek_r1"),
    (
        "deepseek_v3",
        "<｜Assistant｜>{% if not thinking %}</think>{% else %}<think>{% endif %}",
        "deepseek_r1",
    ),
    ("glm4_moe", "<|assistant|>{% if not thinking %}<think></think>{% endif %}", "glm45"),
    ("kimi_k2", "<|im_middle|>{{ '<think></think>' }}", "kimi_k2"),
    ("minimax_m2", "]~b]ai\n<think>\n{{ '</think>' }}", "minimax_m2"),
    ("gpt_oss", "<|start|>assistant<|channel|>analysis<|message|>", "openai_gptoss"),
]


@pytest.mark.parametrize(("model_type", "template", "name"), TEMPLATES)
def test_auto_knows_the_format_by_type_and_template(model_type: str, template: str, name: str) -> None:
    found = registry.detect(model_type, template)
    assert found is not None
    assert found.names[0] == name


def test_a_model_without_thinking_has_no_format() -> None:
    assert registry.detect("qwen3", "<|im_start|>{{ message.content }}<|im_end|>") is None


def test_both_projects_names_are_known() -> None:
    vllm = [
        "deepseek_r1",
        "qwen3",
        "glm45",
        "kimi_k2",
        "minimax_m2",
        "minimax_m2_append_think",
        "openai_gptoss",
    ]
    sglang = ["deepseek-r1", "qwen3-thinking", "glm45", "kimi", "minimax", "minimax-append-think", "gpt-oss"]
    assert all(registry.find(name) for name in [*vllm, *sglang])
    assert registry.find("nonsense") is None
    assert len(set(registry.NAMES)) == len(registry.NAMES)
