"""What `Compiler` makes of a grammar: the language it allows, and one clear line where it cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest
import xgrammar
from penstock.engine.grammar.compile import MAX_WHITESPACE, Compiler, GrammarError
from penstock.engine.grammar.rehearsal import rehearse
from penstock.engine.grammar.vocabulary import token_vocabulary
from penstock.scheduler.messages import GrammarSpec
from penstock.server.model_files import DEMO_DIR

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "array", "items": {"type": "integer"}}},
    "required": ["x"],
}


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    vocab_size = json.loads((DEMO_DIR / "config.json").read_text())["vocab_size"]
    return Compiler(token_vocabulary(DEMO_DIR, vocab_size))


def accepts(compiled: xgrammar.CompiledGrammar, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(compiled)
    return matcher.accept_string(text) and matcher.is_completed()


def tag(**format: Any) -> GrammarSpec:
    return GrammarSpec("structural_tag", json.dumps({"type": "structural_tag", "format": format}))


@pytest.mark.parametrize(
    "spec",
    [
        GrammarSpec("json_schema", json.dumps(POINT)),
        tag(type="json_schema", json_schema=POINT),
        tag(type="sequence", elements=[tag_format := {"type": "json_schema", "json_schema": POINT}]),
        tag(type="or", elements=[{"type": "const_string", "value": "no"}, tag_format]),
    ],
    ids=["json_schema", "tag", "tag in a sequence", "tag in an alternative"],
)
def test_white_space_in_json_is_free_within_a_bound(compiler: Compiler, spec: GrammarSpec) -> None:
    compiled = compiler.compile(spec)
    assert accepts(compiled, json.dumps({"x": 1, "y": [2, 3]}, indent=4))
    assert accepts(compiled, '{"x":1}')
    assert accepts(compiled, '{"x":' + "\n" * MAX_WHITESPACE + "1}")
    assert not accepts(compiled, '{"x":' + "\n" * (MAX_WHITESPACE + 1) + "1}")


def test_a_bound_that_the_client_has_set_stands(compiler: Compiler) -> None:
    compiled = compiler.compile(tag(type="json_schema", json_schema=POINT, max_whitespace_cnt=2))
    assert accepts(compiled, '{"x":  1}')
    assert not accepts(compiled, '{"x":   1}')


def test_a_property_that_is_called_json_schema_is_left_alone(compiler: Compiler) -> None:
    schema = {"const": {"type": "json_schema"}}
    compiled = compiler.compile(tag(type="json_schema", json_schema=schema))
    assert accepts(compiled, '{"type":"json_schema"}')


def test_without_free_white_space_there_is_one_form(compiler: Compiler) -> None:
    compiled = compiler.compile(GrammarSpec("json_schema", json.dumps(POINT), any_whitespace=False))
    assert accepts(compiled, json.dumps({"x": 1, "y": [2, 3]}))
    assert not accepts(compiled, '{"x":1}')


def test_json_is_any_object_and_nothing_else(compiler: Compiler) -> None:
    compiled = compiler.compile(GrammarSpec("json"))
    for good in ("{}", '{"a": [1, null, {"b": "c"}], "d": -1.5e3}'):
        assert accepts(compiled, good)
    for bad in ("[]", "1", '"a"', "null", "{", ""):
        assert not accepts(compiled, bad)


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (GrammarSpec("regex", r"\d{3}-[a-c]+"), "123-abc", "12-abc"),
        (GrammarSpec("ebnf", 'root ::= "yes" | "no"'), "no", "maybe"),
        (GrammarSpec("lark", 'start: "a" /[0-9]+/'), "a42", "a"),
        (
            tag(type="tag", begin="<n>", content={"type": "regex", "pattern": "[0-9]+"}, end="</n>"),
            "<n>7</n>",
            "7",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, GrammarSpec) else "",
)
def test_every_language_is_compiled(compiler: Compiler, spec: GrammarSpec, good: str, bad: str) -> None:
    compiled = compiler.compile(spec)
    assert accepts(compiled, good)
    assert not accepts(compiled, bad)
    rehearse(compiled)


DEFECTS = {
    "cut off schema": (GrammarSpec("json_schema", '{"type": "obj'), "Failed to parse JSON"),
    "unknown type": (GrammarSpec("json_schema", '{"type": "objx"}'), 'Unsupported type "objx"'),
    "reference to nothing": (GrammarSpec("json_schema", '{"$ref": "#/x"}'), "x"),
    "empty schema": (GrammarSpec("json_schema", "false"), "cannot accept any value"),
    "nested 100,000 deep": (
        GrammarSpec("json_schema", '{"items":' * 100_000 + "{}" + "}" * 100_000),
        "depth",
    ),
    "open bracket": (GrammarSpec("regex", "a(b"), "parenthesis is not closed"),
    "look-ahead": (GrammarSpec("regex", "(?=b)a"), "Lookahead is not supported"),
    "missing rule": (GrammarSpec("ebnf", "root ::= foo"), '"foo" is not defined'),
    "missing root": (GrammarSpec("ebnf", 'rot ::= "a"'), '"root" is not found'),
    "open quote": (GrammarSpec("lark", 'start: "a\n'), "unterminated string"),
    "unknown format": (tag(type="foo"), "Format type not recognized: foo"),
    "wrong value": (tag(type="json_schema", json_schema={}, max_whitespace_cnt=1.5), "wrong type"),
    "cut off tag": (GrammarSpec("structural_tag", '{"type'), "not valid JSON"),
    "tag nested 100,000 deep": (GrammarSpec("structural_tag", "[" * 100_000), "nested too deeply"),
    "tag that is no object": (GrammarSpec("structural_tag", "[1]"), "must be an object"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_one_clear_line(compiler: Compiler, name: str) -> None:
    spec, expected = DEFECTS[name]
    with pytest.raises(GrammarError) as raised:
        compiler.compile(spec)
    message = str(raised.value)
    assert expected in message
    assert len(message) <= 400
    for noise in ("\n", ".cc", ".h:", "Check failed", "/project"):
        assert noise not in message


def test_a_grammar_that_allows_nothing_is_refused(compiler: Compiler) -> None:
    with pytest.raises(GrammarError, match="allows no output"):
        rehearse(compiler.compile(GrammarSpec("ebnf", 'root ::= root "a"')))


def test_a_grammar_that_allows_only_the_empty_text_can_be_followed(compiler: Compiler) -> None:
    rehearse(compiler.compile(GrammarSpec("ebnf", 'root ::= ""')))


def test_a_grammar_too_slow_to_follow_is_refused(compiler: Compiler) -> None:
    compiled = compiler.compile(GrammarSpec("ebnf", "root ::= s\ns ::= s s | [a-z ]"))
    with pytest.raises(GrammarError, match="ms a token"):
        rehearse(compiled)
