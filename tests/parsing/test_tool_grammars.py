"""What a grammar of tool calls lets a model write is read back as calls whose arguments fit their schemas."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

import jsonschema
import numpy as np
import pytest
import xgrammar as xgr
from penstock.server.limits import LimitOptions
from penstock.server.model_files import DEMO_DIR
from penstock.server.parsing.events import CallArguments, CallStart, Event, merged
from penstock.server.parsing.interface import TagFormat, ToolFormat, ToolSchema
from penstock.server.parsing.tools.registry import find
from penstock.server.structured.schema import check_schema
from penstock.server.text.detokenizer import Detokenization
from tokenizers import Tokenizer
from tool_answers import SAMPLES, TYPICAL

WALKS = 3
FREE_STEPS = 25  # tokens after which a walk looks for the end
MOST_STEPS = 3000
END = b"</s>"
ENDS = ("\n</parameter>", "</parameter>", "</｜DSML｜parameter>", "</arg_value>", "</function>", "</invoke>")
CLOSERS = ('"', "}", "]", ")", "0", "9", "}}", "\n")

OPEN = ("nothing", "map")  # parameters of any name, and so perhaps one of them twice
SCHEMAS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    "plain": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 2, "maximum": 40},
            "metric": {"type": "boolean"},
        },
        "required": ["city", "metric"],
    },
    "all optional": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "string"}, "c": {"type": "null"}},
    },
    "nested": {
        "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "number"}, "name": {"type": "string"}},
                            "required": ["x", "name"], "additionalProperties": False}},
        "type": "object",
        "properties": {
            "path": {"type": "array", "items": {"$ref": "#/$defs/Point"}, "minItems": 1, "maxItems": 3},
            "start": {"$ref": "#/$defs/Point"},
        },
        "required": ["path"],
    },
    "strings": {
        "type": "object",
        "properties": {
            "bounded": {"type": "string", "minLength": 2, "maxLength": 9},
            "long": {"type": "string", "minLength": 3},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-.[^x]\\S$"},
            "day": {"type": "string", "format": "date"},
            "unit": {"enum": ["<c>", "f", "", "k\n"]},
            "only": {"const": "this"},
        },
        "required": ["bounded", "long", "code", "day", "unit", "only"],
    },
    "mixed": {
        "type": "object",
        "properties": {
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "count": {"type": ["string", "integer"], "minimum": 5, "minLength": 2},
            "choice": {"enum": ["1", "a", 1, None, True]},
            "either": {"oneOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string", "maxLength": 4}]},
            "exact": {"anyOf": [{"type": "string"}, {"const": 5}]},
            "free": {"description": "anything"},
            "unlike": {"anyOf": [{"type": "string", "pattern": "^a+$"}, {"type": "boolean"}]},
        },
        "required": ["note", "count", "choice", "either", "exact", "free", "unlike"],
    },
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "combined": {
        "allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}],
        "anyOf": [
            {"properties": {"b": {"type": "string"}}, "required": ["b"]},
            {"properties": {"c": {"type": "array", "items": {"type": "string"}}}, "required": ["c"]},
        ],
    },
}  # fmt: skip


@lru_cache
def vocabulary(name: str) -> list[bytes]:
    """The demo model's tokens; the format's markers and the pieces that end its calls as tokens of their own."""
    tokenizer = Tokenizer.from_file(str(DEMO_DIR / "tokenizer.json"))
    texts = Detokenization(tokenizer)
    tokens = [texts.token_bytes(token) for token in range(tokenizer.get_vocab_size())]
    more = {word.encode() for word in (*known(name).markers, *ENDS)}
    return [*tokens, *sorted(more - set(tokens)), END]


@lru_cache
def compiler(name: str) -> xgr.GrammarCompiler:
    tokens = vocabulary(name)
    info = xgr.TokenizerInfo(tokens, vocab_type=xgr.VocabType.RAW, stop_token_ids=[len(tokens) - 1])
    return xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)


def known(name: str) -> ToolFormat:
    found = find(name)
    assert found is not None
    return found


def matcher(name: str, tag: TagFormat) -> xgr.GrammarMatcher:
    compiled = compiler(name).compile_structural_tag(json.dumps({"type": "structural_tag", "format": tag}))
    return xgr.GrammarMatcher(compiled, terminate_without_stop_token=True)


def read(name: str, tools: list[ToolSchema], text: str) -> list[Event]:
    parser = known(name).parser(tools)
    return merged([*parser.push(text), *parser.finish()])


def walk(name: str, tag: TagFormat, chance: random.Random) -> str:
    """A text that the grammar allows: tokens drawn at random; after a while, those that may bring an end."""
    tokens = vocabulary(name)
    ends = {word.encode() for word in (*CLOSERS, *ENDS, *known(name).markers)}
    following = matcher(name, tag)
    mask = xgr.allocate_token_bitmask(1, len(tokens))
    text = b""
    for step in range(MOST_STEPS):
        hurry = step > FREE_STEPS or chance.random() < 0.3
        if following.is_terminated() or (hurry and following.is_completed()):
            return text.decode(errors="replace")
        following.fill_next_token_bitmask(mask)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: len(tokens) - 1]
        allowed = np.flatnonzero(bits).tolist()
        if not allowed:
            assert following.is_completed(), f"stuck after {text!r}"
            return text.decode(errors="replace")
        ending = [token for token in allowed if tokens[token] in ends]
        token = chance.choice(ending if ending and hurry and chance.random() < 0.9 else allowed)
        assert following.accept_token(token)
        text += tokens[token]
    raise AssertionError(f"no end was found to {text!r}")


def checked(schema: dict[str, Any]) -> dict[str, Any]:
    return check_schema({"type": "object", **schema}, "parameters", LimitOptions())


LOOK_UP = checked(
    {
        "type": "object",
        "properties": {"place": {"type": "string"}, "days": {"type": "integer", "maximum": 9}},
        "required": ["place", "days"],
    }
)
TYPICAL_TOOLS = [ToolSchema("look_up", LOOK_UP), ToolSchema("ring", checked(SCHEMAS["no parameters"]))]


def called(events: list[Event]) -> list[tuple[str, str]]:
    """(name, arguments) of every call. Fails if there is anything else."""
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallStart):
            calls.append((event.name, ""))
        else:
            assert isinstance(event, CallArguments), event
            calls[event.call] = (calls[event.call][0], calls[event.call][1] + event.text)
    return calls


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_the_grammar_allows_is_read_as_valid_calls(name: str, kind: str) -> None:
    schema = SCHEMAS[kind]
    tools = [ToolSchema("first-tool", checked(schema)), ToolSchema("other", checked(SCHEMAS["plain"]))]
    raw = [ToolSchema("first-tool", schema), ToolSchema("other", SCHEMAS["plain"])]
    for seed in range(WALKS):
        chance = random.Random(seed)
        for at_most_one in (False, True):
            tag = known(name).tag(tools, at_least_one=True, at_most_one=at_most_one)
            text = walk(name, tag, chance)
            calls = called(read(name, raw, text))
            assert len(calls) == 1 if at_most_one else calls, text
            for tool, arguments in calls:
                value = json.loads(arguments, object_pairs_hook=dict if kind in OPEN else once)
                wanted = {one.name: one.parameters for one in raw}[tool]
                jsonschema.validate(value, {"type": "object", **wanted})


@pytest.mark.parametrize("name", SAMPLES)
def test_grammar_lets_a_model_write_what_its_family_writes(name: str) -> None:
    for at_most_one, text in ((True, TYPICAL[name][0]), (False, TYPICAL[name][1])):
        tag = known(name).tag(TYPICAL_TOOLS, at_least_one=True, at_most_one=at_most_one)
        following = matcher(name, tag)
        assert following.accept_string(text)
        assert following.is_completed()
        assert len(called(read(name, TYPICAL_TOOLS, text))) == (1 if at_most_one else 2)


@pytest.mark.parametrize("name", SAMPLES)
def test_required_grammar_refuses_text_unknown_names_and_second_calls(name: str) -> None:
    one, two = TYPICAL[name]
    tag = known(name).tag(TYPICAL_TOOLS, at_least_one=True, at_most_one=True)
    for text in ("Hello", one + " and more", two, one.replace("look_up", "look_in"), one.replace("7", "x")):
        following = matcher(name, tag)
        assert not (following.accept_string(text) and following.is_completed()), text


@pytest.mark.parametrize("name", SAMPLES)
def test_free_grammar_lets_text_through_and_holds_strict_calls_to_their_schema(name: str) -> None:
    one, two = TYPICAL[name]
    strict = [ToolSchema(tool.name, tool.parameters, strict=True) for tool in TYPICAL_TOOLS]

    def accepts(tools: list[ToolSchema], text: str, *, at_most_one: bool = False) -> bool:
        following = matcher(name, known(name).tag(tools, at_least_one=False, at_most_one=at_most_one))
        return bool(following.accept_string(text) and following.is_completed())

    wrong = one.replace("7", "70")
    for tools in (TYPICAL_TOOLS, strict):
        assert accepts(tools, "Hello, {what} <is> this?")
        assert accepts(tools, one)
        assert accepts(tools, two)
        assert not accepts(tools, two, at_most_one=True)
        assert not accepts(tools, one.replace("look_up", "look_in"))
    assert accepts(TYPICAL_TOOLS, wrong)
    assert not accepts(strict, wrong)
    if name != "pythonic":  # whose calls are the whole answer
        assert accepts(strict, "Let me see." + one)
