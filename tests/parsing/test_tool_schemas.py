"""What a tool's schema says about its parameters is understood, and no schema can make a parser fail or hang."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.server.parsing.events import CallArguments
from penstock.server.parsing.interface import ToolSchema
from penstock.server.parsing.tools.bare_patterns import ANGLE, beginning_otherwise, without_angle
from penstock.server.parsing.tools.object_shapes import shapes_of, types_in
from penstock.server.parsing.tools.python_literal import as_json
from penstock.server.parsing.tools.registry import find
from penstock.server.parsing.tools.schema_types import ANY, types_of
from penstock.server.parsing.tools.xml_values import to_json
from penstock.server.structured.regex import Alt, Chars, Node, Repeat, Seq
from penstock.server.structured.regex_reader import read_regex

ROOT: dict[str, Any] = {
    "$defs": {
        "Text": {"type": "string"},
        "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"type": "null"}]},
        "a/b": {"const": 1},
    }
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["number", "null"]}, {"number", "integer", "null"}),
        ({"enum": ["a", 1.5, None]}, {"string", "number", "null"}),
        ({"const": True}, {"boolean"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"type": "array"}, {"enum": ["x"]}]}, {"array", "string"}),
        ({"allOf": [{"type": ["string", "array"]}, {"type": ["array", "null"]}]}, {"array"}),
        ({"$ref": "#/$defs/Text"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"integer"}),
        ({"$ref": "#/nowhere"}, ANY),
        ({"$ref": "#/$defs/Loop"}, ANY),
        ({}, ANY),
        (True, ANY),
        ({"type": "nonsense"}, ANY),
    ],
)
def test_types_that_a_schema_leaves_open(schema: object, types: set[str]) -> None:
    assert types_of(schema, ROOT) == types


@pytest.mark.parametrize(
    ("text", "types", "written"),
    [
        ("5", {"integer"}, "5"),
        ("5", {"string", "null"}, '"5"'),
        ("null", {"string", "null"}, "null"),
        (" 1.5 ", {"string", "integer"}, '" 1.5 "'),
        ("five", {"integer"}, '"five"'),
        ('"5"', {"integer"}, '"5"'),
        ('"5"', {"string", "integer"}, '"\\"5\\""'),
        ('"5"', ANY, '"5"'),
        ("True", {"boolean"}, "true"),
        ("True", ANY, '"True"'),
        ("{'a': [1, None]}", {"object"}, '{"a": [1, null]}'),
        ("[1, 2", {"array"}, '"[1, 2"'),
        ("[" * 100_000, {"array"}, '"' + "[" * 100_000 + '"'),
        ("9" * 5000, {"integer"}, "9" * 5000),
    ],
)
def test_bare_text_is_read_by_its_types(text: str, types: set[str], written: str) -> None:
    assert to_json(text, frozenset(types)) == written


@pytest.mark.parametrize(
    ("literal", "written"),
    [
        ("'it\\'s'", '"it\'s"'),
        ('"a\\x00\\U0001F600\\uD83D\\uDE00"', '"a\\u0000😀\\uD83D\\uDE00"'),
        ("'\\N{DASH} \\q \\xZ'", '"\\\\N{DASH} \\\\q \\\\xZ"'),
        ("0x1f", None),
        ("+7", "7"),
        ("1_0.5e-3", "0.0105"),
        ("1e999", "1e999"),
        ("+1e999", None),
        ("{}", "{}"),
        ("[ ]", "[]"),
        ("{'a': 1, }", '{"a": 1}'),
        ("{1: 2}", None),
        ("(1, 2)", None),
        ("f(1)", None),
        ("[1,, 2]", None),
        ("[,]", None),
        ("1 2", None),
        ("", None),
    ],
)
def test_python_literals_become_json(literal: str, written: str | None) -> None:
    assert as_json(literal) == written


def test_parameters_are_found_behind_references_and_combinations() -> None:
    schema = {
        "$defs": {"Base": {"properties": {"id": {"type": "integer"}}, "required": ["id"]}},
        "allOf": [{"$ref": "#/$defs/Base"}],
        "oneOf": [{"properties": {"x": {"type": "string"}}}, {"properties": {"x": {"type": "null"}}}],
        "properties": {"flag": {"type": "boolean"}},
    }
    shapes = shapes_of(schema)
    assert [[one.key for one in shape.parameters if one.required] for shape in shapes] == [["id"], ["id"]]
    assert types_in(shapes, schema, "flag") == {"boolean"}
    assert types_in(shapes, schema, "x") == {"string", "null"}
    assert types_in(shapes, schema, "unheard of") == ANY
    assert types_in(shapes_of({"additionalProperties": {"type": "array"}}), {}, "any") == {"array"}


KEYWORDS = ["type", "properties", "required", "anyOf", "oneOf", "allOf", "$ref", "enum", "const", "$defs",
            "additionalProperties", "patternProperties", "minProperties", "maxProperties", "x"]  # fmt: skip
NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["x", "#", "#/$defs/x", "string", "object"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYWORDS), NONSENSE, max_size=5), st.sampled_from(["5", "a", "{}", ""])
)
def test_no_schema_makes_a_parser_fail(schema: dict[str, Any], value: str) -> None:
    known = find("qwen3_coder")
    assert known is not None
    parser = known.parser([ToolSchema("f", schema)])
    events = parser.push(f"<function=f><parameter=x>{value}</parameter></function>") + parser.finish()
    assert any(isinstance(event, CallArguments) for event in events)


def test_references_do_not_multiply_the_work() -> None:
    everything = [{"$ref": f"#/$defs/d{number}"} for number in range(60)]
    schema = {
        "$defs": {f"d{number}": {"anyOf": everything, "allOf": everything} for number in range(60)},
        "properties": {"x": {"anyOf": everything}},
        "allOf": everything,
    }
    assert types_of(schema["properties"]["x"], schema) == ANY  # type: ignore[index]
    assert types_in(shapes_of(schema), schema, "x") == ANY


PATTERNS = [r"^a.b$", r"^[^x]*$", r"^[0->]{2}$", r"^(<b>|<\S)+$", r"^\D?\W*[ab]?$", "^$", r"^(a|<|b*)c$"]
ALPHABET = "abcx<>/0 -<<"


def spelled(node: Node) -> str:
    """The node as Python writes regular expressions."""
    match node:
        case Chars(ranges):
            return "[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges) + "]"
        case Seq(parts):
            return "".join(map(spelled, parts))
        case Alt(options):
            return f"(?:{'|'.join(map(spelled, options))})"
        case Repeat(part, low, high):
            return f"(?:{spelled(part)}){{{low},{'' if high is None else high}}}"


def matches(node: Node | None, text: str) -> bool:
    return node is not None and re.fullmatch(spelled(node), text) is not None


@given(st.sampled_from(PATTERNS), st.text(ALPHABET, max_size=6))
def test_pattern_without_an_angle_allows_the_same_texts_but_those_with_one(pattern: str, text: str) -> None:
    narrowed = without_angle(read_regex(pattern, "pattern", search=True))
    allowed = re.fullmatch(pattern, text) is not None
    if "<" not in text:
        assert matches(narrowed, text) == allowed
    elif matches(narrowed, text):
        assert allowed
        assert "<" in pattern


@given(st.sampled_from(PATTERNS), st.text(ALPHABET, max_size=6))
def test_pattern_can_be_kept_from_beginning_with_some_characters(pattern: str, text: str) -> None:
    node = read_regex(pattern, "pattern", search=True)
    narrowed = beginning_otherwise(node, ((ord("-"), ord("9")), *ANGLE))
    allowed = re.fullmatch(pattern, text) is not None and re.match("[--9<]", text) is None
    assert matches(narrowed, text) == allowed
