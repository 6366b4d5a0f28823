"""Every field that constrains the output means what its project says, and none is ever passed over."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from grammar_walk import END, accepts, compiler
from penstock.scheduler.messages import GrammarSpec
from penstock.server.api.protocol import CompletionRequest
from penstock.server.limits import LimitOptions
from penstock.server.structured.constraint import Constraint, constraint_of
from penstock.server.structured.errors import ConstraintError
from xgrammar import CompiledGrammar, GrammarMatcher

LIMITS = LimitOptions()
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TAG = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<a>",
        "content": {"type": "json_schema", "json_schema": SCHEMA},
        "end": "</a>",
    },
}
LEGACY = {
    "type": "structural_tag",
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f"],
}
GBNF = 'root ::= "yes" | "no"'
LARK = 'start: "yes" | "no"'
JSON = (['{"n":1}', '{"n": -3}', '{\n  "n": 1\n}'], ['{"n":"x"}', "{}", "hello", ""])
OBJECT = (['{"a":[1]}', "{}"], ["[]", "3", "hello"])
WORDS = (["yes", "no"], ["maybe", "yesno", "", "Yes"])
REGEX = (["ab", "aab"], ["b", "", "xab", "abx"])
TAGGED = (['<a>{"n":1}</a>'], ['{"n":1}', "<a>x</a>", ""])
FREE_TAGGED = (['hello <f>{"n":1}</f> bye', "hello"], ["<f>x</f>"])

SOURCES: list[tuple[dict[str, Any], tuple[list[str], list[str]]]] = [
    ({"response_format": {"type": "json_object"}}, OBJECT),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            }
        },
        JSON,
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "description": "d"}}},
        JSON,
    ),
    ({"response_format": TAG}, TAGGED),
    ({"response_format": LEGACY}, FREE_TAGGED),
    ({"structured_outputs": {"json": SCHEMA}}, JSON),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, JSON),
    ({"structured_outputs": {"json_object": True}}, OBJECT),
    ({"structured_outputs": {"regex": "a+b"}}, REGEX),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, WORDS),
    ({"structured_outputs": {"grammar": GBNF}}, WORDS),
    ({"structured_outputs": {"grammar": LARK}}, WORDS),
    ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, TAGGED),
    ({"structured_outputs": {"structural_tag": LEGACY, "disable_additional_properties": True}}, FREE_TAGGED),
    ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines:no-fallback"}, JSON),
    ({"guided_json": json.dumps(SCHEMA)}, JSON),
    ({"guided_json_object": True}, OBJECT),
    ({"guided_regex": "^a+b$"}, REGEX),
    ({"guided_choice": ["yes", "no"]}, WORDS),
    ({"guided_grammar": GBNF}, WORDS),
    ({"regex": "a+b"}, REGEX),
    ({"ebnf": GBNF}, WORDS),
    ({"json_schema": SCHEMA}, JSON),
    ({"json_schema": json.dumps(SCHEMA)}, JSON),
    ({"structural_tag": json.dumps(TAG)}, TAGGED),
    ({"grammar": GBNF}, WORDS),
    ({"grammar": LARK}, WORDS),
]


def request(**fields: Any) -> CompletionRequest:
    return msgspec.json.decode(json.dumps({"prompt": "x", **fields}), type=CompletionRequest)


def constraint(**fields: Any) -> Constraint:
    found = constraint_of(request(**fields), LIMITS)
    assert found is not None
    return found


def compiled(spec: GrammarSpec) -> CompiledGrammar:
    match spec.kind:
        case "json_schema":
            bound = 8 if spec.any_whitespace else None
            return compiler().compile_json_schema(
                spec.text, any_whitespace=spec.any_whitespace, max_whitespace_cnt=bound
            )
        case "regex":
            return compiler().compile_regex(spec.text)
        case "ebnf":
            return compiler().compile_grammar(spec.text)
        case "lark":
            return compiler().compile_lark(spec.text)
    return compiler().compile_structural_tag(spec.text)


def allows(grammar: CompiledGrammar, text: str) -> bool:
    """An empty text is allowed if the end may come at once."""
    return accepts(grammar, text) if text else GrammarMatcher(grammar).accept_token(END)


@pytest.mark.parametrize(
    ("fields", "texts"), SOURCES, ids=[f"{n}-{'+'.join(fields)}" for n, (fields, _) in enumerate(SOURCES)]
)
def test_each_source_is_enforced_alone_and_inside_a_structural_tag(
    fields: dict[str, Any], texts: tuple[list[str], list[str]]
) -> None:
    found = constraint(**fields)
    assert found.param.partition(".")[0] in fields
    grammars = [(compiled(found.spec), "")]
    if found.spec.kind != "lark":
        format = {"type": "sequence", "elements": [{"type": "const_string", "value": "think:"}, found.tag()]}
        grammars.append(
            (compiler().compile_structural_tag({"type": "structural_tag", "format": format}), "think:")
        )
    allowed, forbidden = texts
    for grammar, before in grammars:
        for text in allowed:
            assert allows(grammar, before + text), text
        for text in forbidden:
            assert not allows(grammar, before + text), text


@pytest.mark.parametrize(
    "fields",
    [{}, {"response_format": None}, {"response_format": {"type": "text"}}, {"guided_json_object": False}],
    ids=str,
)
def test_what_asks_for_nothing_is_no_constraint(fields: dict[str, Any]) -> None:
    assert constraint_of(request(**fields, ignore_eos=True), LIMITS) is None


def test_texts_of_a_choice_are_exact_whatever_they_hold() -> None:
    texts = [
        '"quoted"',
        "back\\slash \\n",
        "two\nlines",
        "{}[]()|*+?.^$",
        "é中😀",
        "<tag>",
        "yes",
        "ye",
        "::=",
    ]
    grammar = compiled(constraint(guided_choice=texts).spec)
    for text in texts:
        assert allows(grammar, text)
        assert not allows(grammar, text + "x")
    assert not allows(grammar, "two\\nlines")


def test_white_space_is_free_or_canonical() -> None:
    free = compiled(constraint(structured_outputs={"json": SCHEMA}).spec)
    for fields in (
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "[ ]?"}},
        {"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
        {"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar:disable-any-whitespace"},
    ):
        found = constraint(**fields)
        canonical = compiled(found.spec)
        assert allows(canonical, '{"n": 1}')
        assert not allows(canonical, '{"n":1}')
        assert not allows(canonical, '{ "n": 1 }')
        assert found.tag()["max_whitespace_cnt"] == 1
    assert allows(free, '{ "n" : 1 }')
    assert constraint(guided_json=SCHEMA, guided_whitespace_pattern=r"\s*").spec.any_whitespace


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("structured_outputs", {"structured_outputs": {"json": SCHEMA, "regex": "a"}}),
    ("structured_outputs", {"structured_outputs": {}}),
    ("structured_outputs", {"structured_outputs": {"disable_any_whitespace": True}}),
    (
        "structured_outputs.whitespace_pattern",
        {"structured_outputs": {"regex": "a", "whitespace_pattern": " "}},
    ),
    (
        "structured_outputs.whitespace_pattern",
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "\t"}},
    ),
    (
        "structured_outputs.whitespace_pattern",
        {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "("}},
    ),
    ("structured_outputs.json", {"structured_outputs": {"json": "{"}}),
    ("structured_outputs.json.minLenght", {"structured_outputs": {"json": {"minLenght": 3}}}),
    ("structured_outputs.choice", {"structured_outputs": {"choice": []}}),
    ("structured_outputs.choice", {"structured_outputs": {"choice": [str(n) for n in range(2000)]}}),
    ("structured_outputs.choice", {"structured_outputs": {"choice": [""]}}),
    ("structured_outputs.choice", {"structured_outputs": {"choice": ["x" * 1000] * 200}}),
    ("structured_outputs.grammar", {"structured_outputs": {"grammar": "hello"}}),
    ("guided_regex", {"guided_regex": "a(?=b)"}),
    ("guided_regex", {"guided_regex": "a" * 5000}),
    ("guided_regex", {"guided_regex": "[^\\s\\S]"}),
    ("ebnf", {"ebnf": "root ::= " + '"x" ' * 40_000}),
    ("guided_decoding_backend", {"guided_decoding_backend": "magic"}),
    ("guided_decoding_backend", {"guided_json": SCHEMA, "guided_decoding_backend": "xgrammar:fast"}),
    ("guided_whitespace_pattern", {"guided_whitespace_pattern": " "}),
    ("regex", {"guided_json": SCHEMA, "regex": "a"}),
    ("guided_choice", {"response_format": {"type": "json_object"}, "guided_choice": ["a"]}),
    ("ignore_eos", {"guided_json": SCHEMA, "ignore_eos": True}),
    ("allowed_token_ids", {"guided_json": SCHEMA, "allowed_token_ids": [1]}),
    ("response_format", {"response_format": {}}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("response_format.type", {"response_format": {"type": "text", "schema": SCHEMA}}),
    ("response_format.strict", {"response_format": {"type": "json_object", "strict": True}}),
    ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
    (
        "response_format.json_schema.schema",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    ),
    (
        "response_format.json_schema.strict",
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": "yes"}}},
    ),
    (
        "response_format.json_schema.schema.properties.a.not",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"type": "object", "properties": {"a": {"not": {}}}}},
            }
        },
    ),
    ("response_format.structures", {"response_format": {"type": "structural_tag", "triggers": ["a"]}}),
    (
        "response_format.format.type",
        {"response_format": {"type": "structural_tag", "format": {"type": "magic"}}},
    ),
    (
        "response_format.format.elements[0].any_order",
        {
            "response_format": {
                "type": "structural_tag",
                "format": {
                    "type": "sequence",
                    "elements": [{"type": "json_schema", "json_schema": {}, "any_order": True}],
                },
            }
        },
    ),
    (
        "response_format.format.content.json_schema.contains",
        {
            "response_format": {
                "type": "structural_tag",
                "format": {
                    "type": "tag",
                    "begin": "a",
                    "end": "b",
                    "content": {"type": "json_schema", "json_schema": {"contains": {}}},
                },
            }
        },
    ),
    ("structural_tag", {"structural_tag": "[" * 3000}),
]


@pytest.mark.parametrize(
    ("path", "fields"), REFUSED, ids=[f"{n}-{path}" for n, (path, _) in enumerate(REFUSED)]
)
def test_what_cannot_be_enforced_is_refused_by_name(path: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError) as caught:
        constraint_of(request(**fields), LIMITS)
    assert caught.value.path == path


def test_two_constraints_are_both_named() -> None:
    with pytest.raises(ConstraintError) as caught:
        constraint_of(request(guided_json=SCHEMA, regex="a"), LIMITS)
    assert "guided_json" in str(caught.value)
    assert "regex" in str(caught.value)


def test_a_lark_grammar_beside_thinking_is_refused() -> None:
    with pytest.raises(ConstraintError, match="Lark"):
        constraint(grammar=LARK).tag()
