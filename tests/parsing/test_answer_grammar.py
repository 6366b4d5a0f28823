"""Whatever a model writes under an answer's grammar is what was asked for: no model here, tokens are drawn at random."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import xgrammar
from penstock.engine.grammar.compile import Compiler
from penstock.engine.grammar.visible import VisibleTokens
from penstock.engine.grammar.vocabulary import read_vocabulary
from penstock.scheduler.messages import GrammarSpec
from penstock.server.parsing.combine import AnswerParser, answer_tag
from penstock.server.parsing.events import CallArguments, CallStart, Content, Event, Reasoning, merged
from penstock.server.parsing.interface import ReasoningFormat, TagFormat, ToolFormat, ToolSchema
from penstock.server.parsing.json_calls import JsonCalls
from penstock.server.parsing.reasoning import registry as reasoning
from penstock.server.parsing.tools import registry as tools
from tokenizers import AddedToken, Tokenizer

DEMO = Path(__file__).parents[2] / "server" / "demo_model" / "tokenizer.json"
HARMONY = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"]
CHATML = "<|im_start|>assistant\n"
OPENED = CHATML + "<think>\n"
CLOSED = CHATML + "<think>\n\n</think>\n\n"
GPT_OSS = "<|start|>assistant"
MOST_TOKENS = 400
SEEDS = range(4)

LOOK_UP = ToolSchema(
    "look_up",
    {
        "type": "object",
        "properties": {"place": {"enum": ["here", "there"]}, "days": {"type": "integer", "maximum": 9}},
        "required": ["place", "days"],
        "additionalProperties": False,
    },
)
RING = ToolSchema(
    "ring",
    {
        "type": "object",
        "properties": {"loud": {"type": "boolean"}},
        "required": ["loud"],
        "additionalProperties": False,
    },
)
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
ANSWER: TagFormat = {"type": "json_schema", "json_schema": SCHEMA, "max_whitespace_cnt": 4}


@dataclass(frozen=True)
class Model:
    """A vocabulary, and what may follow in it."""

    tokenizer: Tokenizer
    compiler: Compiler
    visible: VisibleTokens
    stops: list[int]
    size: int

    def compile(self, tag: TagFormat) -> tuple[xgrammar.GrammarMatcher, np.ndarray]:
        spec = GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", "format": tag}))
        matcher = xgrammar.GrammarMatcher(self.compiler.compile(spec), override_stop_tokens=self.stops)
        visible = self.visible.of(spec).copy()
        for stop in self.stops:
            visible.view(np.uint32)[stop // 32] |= np.uint32(1 << stop % 32)
        return matcher, visible

    def allowed(self, matcher: xgrammar.GrammarMatcher, visible: np.ndarray) -> list[int]:
        mask = xgrammar.allocate_token_bitmask(1, self.size)
        matcher.fill_next_token_bitmask(mask)
        bits = mask.numpy()[0] & visible
        return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()

    def write(self, tag: TagFormat, seed: int) -> list[str]:
        """The tokens' texts of an answer drawn at random; after a while it ends as soon as it may."""
        matcher, visible = self.compile(tag)
        chance = random.Random(seed)
        texts: list[str] = []
        for _ in range(MOST_TOKENS):
            allowed = self.allowed(matcher, visible)
            assert allowed, f"nothing may follow {''.join(texts)!r}"
            ends = [token for token in self.stops if token in allowed]
            token = ends[0] if ends and len(texts) > 12 else chance.choice(allowed)
            assert matcher.accept_token(token)
            if token in self.stops:
                return texts
            texts.append(self.tokenizer.decode([token], skip_special_tokens=False))
        raise AssertionError(f"no end after {''.join(texts)!r}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    tokenizer = Tokenizer.from_file(str(DEMO))
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in HARMONY])
    directory = tmp_path_factory.mktemp("model")
    tokenizer.save(str(directory / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    vocabulary = read_vocabulary(directory, size)
    stops = [tokenizer.token_to_id(name) for name in ("<|im_end|>", "<|call|>", "<|return|>")]
    return Model(
        tokenizer, Compiler(vocabulary.info()), VisibleTokens(vocabulary.special, stops, size), stops, size
    )


def thinks(name: str) -> ReasoningFormat:
    found = reasoning.find(name)
    assert found is not None
    return found


def writes(name: str) -> ToolFormat:
    found = JsonCalls() if name == "json" else tools.find(name)
    assert found is not None
    return found


def parts(
    texts: list[str], prompt: str, thought: ReasoningFormat | None, called: ToolFormat | None
) -> list[Event]:
    parser = AnswerParser(prompt, thought, called, [LOOK_UP, RING] if called is not None else [])
    events = [event for text in texts for event in parser.push(text)]
    return merged(events + parser.finish())


def calls(events: list[Event]) -> list[tuple[str, dict]]:
    names = [event.name for event in events if isinstance(event, CallStart)]
    arguments = ["" for _ in names]
    for event in events:
        if isinstance(event, CallArguments):
            arguments[event.call] += event.text
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def check_call(name: str, arguments: dict) -> None:
    jsonschema.validate(arguments, {"look_up": LOOK_UP, "ring": RING}[name].parameters)


def content(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def rules(
    prompt: str, thought: ReasoningFormat | None, called: ToolFormat | None, **more: object
) -> TagFormat:
    options = {"text": None, "at_least_one": False, "at_most_one": False, "budget": None, **more}
    schemas = [LOOK_UP, RING] if called is not None else []
    return answer_tag(thought, called, schemas, options.pop("text"), prompt=prompt, **options)


FORMATS = [
    ("qwen3", "hermes", CHATML),
    ("qwen3", "hermes", OPENED),
    ("qwen3", "hermes", CLOSED),
    ("deepseek_r1", "json", CHATML),
    ("glm45", "glm45", CHATML),
    ("openai_gptoss", "openai", GPT_OSS),
]


@pytest.mark.parametrize(("thought", "called", "prompt"), FORMATS)
def test_required_calls_come_after_thinking_and_are_valid(
    model: Model, thought: str, called: str, prompt: str
) -> None:
    tag = rules(prompt, thinks(thought), writes(called), at_least_one=True, budget=6)
    for seed in SEEDS:
        events = parts(model.write(tag, seed), prompt, thinks(thought), writes(called))
        made = calls(events)
        assert made
        for name, arguments in made:
            check_call(name, arguments)
        assert not content(events)


@pytest.mark.parametrize(("thought", "called", "prompt"), FORMATS)
def test_at_most_one_call_is_one(model: Model, thought: str, called: str, prompt: str) -> None:
    tag = rules(prompt, thinks(thought), writes(called), at_least_one=True, at_most_one=True, budget=6)
    for seed in SEEDS:
        assert len(calls(parts(model.write(tag, seed), prompt, thinks(thought), writes(called)))) == 1


@pytest.mark.parametrize(("thought", "prompt"), [(name, prompt) for name, _, prompt in FORMATS])
def test_a_constraint_begins_where_thinking_ends(model: Model, thought: str, prompt: str) -> None:
    tag = rules(prompt, thinks(thought), None, text=ANSWER, budget=6)
    for seed in SEEDS:
        events = parts(model.write(tag, seed), prompt, thinks(thought), None)
        jsonschema.validate(json.loads(content(events)), SCHEMA)
        assert [type(event) for event in events] in ([Reasoning, Content], [Content])


@pytest.mark.parametrize(("thought", "called", "prompt"), FORMATS)
def test_calls_or_the_constrained_text(model: Model, thought: str, called: str, prompt: str) -> None:
    tag = rules(prompt, thinks(thought), writes(called), text=ANSWER, budget=6)
    seen = set()
    for seed in range(12):
        events = parts(model.write(tag, seed), prompt, thinks(thought), writes(called))
        made = calls(events)
        seen.add(bool(made))
        if made:
            assert not content(events)
            for name, arguments in made:
                check_call(name, arguments)
        else:
            jsonschema.validate(json.loads(content(events)), SCHEMA)
    assert seen == {True, False}


BUDGETS = [
    ("qwen3", OPENED, "</think>"),
    ("deepseek_r1", CHATML, "</think>"),
    ("openai_gptoss", GPT_OSS + "<|channel|>analysis<|message|>", "<|end|>"),
    ("openai_gptoss", GPT_OSS, "<|end|>"),
]


@pytest.mark.parametrize(("thought", "prompt", "end"), BUDGETS)
@pytest.mark.parametrize("budget", [1, 5])
def test_thinking_ends_exactly_when_its_budget_is_spent(
    model: Model, thought: str, prompt: str, end: str, budget: int
) -> None:
    matcher, visible = model.compile(rules(prompt, thinks(thought), None, budget=budget))
    if prompt == GPT_OSS:
        for text in ("<|channel|>", "an", "al", "y", "s", "is", "<|message|>"):
            assert matcher.accept_string(text)
    word = model.tokenizer.token_to_id("the")
    closing = model.tokenizer.token_to_id(end)
    for _ in range(budget):
        allowed = model.allowed(matcher, visible)
        assert {word, closing} <= set(allowed)  # it may end sooner
        assert matcher.accept_token(word)
    left = model.allowed(matcher, visible)
    assert closing in left
    assert all(end.startswith(model.tokenizer.decode([token], skip_special_tokens=False)) for token in left)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "glm45", "openai_gptoss"])
def test_no_budget_is_no_thinking(model: Model, name: str) -> None:
    for prompt in [GPT_OSS] if name == "openai_gptoss" else [CHATML, OPENED, CLOSED]:
        tag = rules(prompt, thinks(name), None, text=ANSWER, budget=0)
        (event,) = parts(model.write(tag, 0), prompt, thinks(name), None)
        assert isinstance(event, Content)
        jsonschema.validate(json.loads(event.text), SCHEMA)


def test_thinking_cannot_hide_in_an_answer_that_its_budget_does_not_count(model: Model) -> None:
    matcher, visible = model.compile(rules(CHATML, thinks("qwen3"), None, budget=2))
    assert matcher.accept_token(model.tokenizer.token_to_id("<think>"))
    word = model.tokenizer.token_to_id("the")
    assert matcher.accept_token(word)
    assert matcher.accept_token(word)
    assert word not in model.allowed(matcher, visible)


@pytest.mark.parametrize(("thought", "called", "prompt"), FORMATS)
def test_strict_tools_under_auto_are_enforced_where_they_are_called(
    model: Model, thought: str, called: str, prompt: str
) -> None:
    strict = [ToolSchema(tool.name, tool.parameters, strict=True) for tool in (LOOK_UP, RING)]
    tag = answer_tag(
        None if called != "openai" else thinks(thought),
        writes(called),
        strict,
        None,
        prompt=prompt,
        at_least_one=False,
        at_most_one=True,
        budget=0,
    )
    matcher, _ = model.compile(tag)
    start = {
        "hermes": '<tool_call>\n{"name": "ring", "arguments": {"loud": ',
        "json": '[{"name": "ring", "parameters": {"loud": ',
        "glm45": "<tool_call>ring\n<arg_key>loud</arg_key>\n<arg_value>",
        "openai": '<|channel|>commentary to=functions.ring <|constrain|>json<|message|>{"loud": ',
    }[called]
    assert matcher.accept_string(start)
    assert not matcher.accept_string('"very"')
    assert matcher.accept_string("true")


@pytest.mark.parametrize(("thought", "called", "prompt"), FORMATS[:3])
def test_a_resumed_answer_may_go_on_as_the_uninterrupted_one(
    model: Model, thought: str, called: str, prompt: str
) -> None:
    """The budget counts the tokens that came before, too."""
    tag = rules(prompt, thinks(thought), writes(called), at_least_one=True, budget=4)
    matcher, visible = model.compile(tag)
    chance = random.Random(3)
    tokens: list[int] = []
    for _ in range(30):
        allowed = model.allowed(matcher, visible)
        resumed, _ = model.compile(tag)
        for before in tokens:
            model.allowed(resumed, visible)
            assert resumed.accept_token(before)
        assert model.allowed(resumed, visible) == allowed
        token = chance.choice(allowed)
        if token in model.stops:
            return
        assert matcher.accept_token(token)
        tokens.append(token)
