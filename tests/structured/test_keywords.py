"""Every keyword has a standing; those said to be enforced are, those said to be refused are, each by name and path."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from grammar_walk import accepts, compile_schema, problem, rewritten
from jsonschema_specifications import REGISTRY
from penstock.server.limits import LimitOptions
from penstock.server.structured.errors import ConstraintError, Unsatisfiable
from penstock.server.structured.formats import STRINGS
from penstock.server.structured.keywords import ENFORCED, REFUSED, standing
from penstock.server.structured.schema import check_schema

VOCABULARIES = (
    "core",
    "applicator",
    "unevaluated",
    "validation",
    "meta-data",
    "format-annotation",
    "content",
)
TEXT, WHOLE, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}

# keyword -> (schema, values it allows, values it forbids)
ENFORCEMENT: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "type": ({"type": ["string", "integer"]}, ["a", 3], [None, 1.5, [], {}]),
    "enum": ({"enum": ["a/b", 1, None, {"k": [1]}]}, ["a/b", 1, None], ["a", 2, {}]),
    "const": ({"const": "é\n"}, ["é\n"], ["é", None]),
    "$ref": ({"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": WHOLE}}, [3, 4], [2, "a"]),
    "allOf": ({"allOf": [WHOLE, {"minimum": 3}], "maximum": 4}, [3, 4], [2, 5]),
    "anyOf": ({"type": "string", "anyOf": [{"maxLength": 1}, {"minLength": 3}]}, ["", "a", "abc"], ["ab", 1]),
    "oneOf": ({"oneOf": [TEXT, WHOLE, NULL]}, ["a", 1, None], [1.5, True]),
    "nullable": ({"type": "string", "nullable": True}, ["a"], [1]),
    "minLength": ({**TEXT, "minLength": 2}, ["ab", "😀é", "abc"], ["a", ""]),
    "maxLength": ({**TEXT, "maxLength": 2}, ["ab", "😀é", ""], ["abc"]),
    "pattern": ({**TEXT, "pattern": "^a+b?$"}, ["a", "aab"], ["b", "abb", "ba"]),
    "format": ({**TEXT, "format": "date"}, ["2024-02-29"], ["2023-02-29", "x", "2024-1-1"]),
    "minimum": ({**WHOLE, "minimum": -2}, [-2, 0, 99], [-3]),
    "maximum": ({"type": "number", "maximum": 2.5}, [2.5, -3, 0.25], [2.6, 3]),
    "exclusiveMinimum": ({"type": "number", "exclusiveMinimum": 0}, [0.1, 5], [0, -1]),
    "exclusiveMaximum": ({**WHOLE, "exclusiveMaximum": 5}, [4, -1], [5, 6]),
    "multipleOf": ({**WHOLE, "multipleOf": 3}, [0, 3, -9, 12], [1, 2, 4]),
    "items": ({"type": "array", "items": WHOLE}, [[], [1], [1, 2]], [["a"], [1, None]]),
    "prefixItems": (
        {"type": "array", "prefixItems": [WHOLE, TEXT], "items": False},
        [[1, "a"]],
        [["a"], [1, "a", 2]],
    ),
    "additionalItems": ({"items": [WHOLE], "additionalItems": TEXT}, [[1, "a"]], [[1, 1], ["a"]]),
    "minItems": ({"type": "array", "items": WHOLE, "minItems": 2}, [[1, 2], [1, 2, 3]], [[], [1]]),
    "maxItems": ({"type": "array", "items": WHOLE, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3]]),
    "uniqueItems": (
        {"type": "array", "items": WHOLE, "uniqueItems": True, "maxItems": 1},
        [[], [1]],
        [[1, 1]],
    ),
    "unevaluatedItems": ({"prefixItems": [WHOLE], "unevaluatedItems": False}, [[1]], [[1, 2]]),
    "properties": ({"type": "object", "properties": {"a": WHOLE}}, [{}, {"a": 1}], [{"a": "x"}]),
    "required": (
        {"type": "object", "properties": {"a": WHOLE}, "required": ["z"]},
        [{"z": 1}],
        [{}, {"a": 1}],
    ),
    "additionalProperties": (
        {"properties": {"a": WHOLE}, "additionalProperties": TEXT},
        [{"a": 1, "b": "x"}, {"b": "x"}, {"ab": "x", "": "y"}],
        [{"a": "x"}, {"b": 1}],
    ),
    "patternProperties": ({"patternProperties": {"^x": WHOLE}}, [{"x1": 1}, {}], [{"x1": "a"}]),
    "propertyNames": (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": WHOLE},
        [{"a": 1}, {}, {"a": 1, "b": 2}],
        [{"c": 1}, {"a": "x"}],
    ),
    "minProperties": ({"properties": {"a": WHOLE, "b": WHOLE}, "minProperties": 1}, [{"b": 1}], [{}]),
    "maxProperties": ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    "unevaluatedProperties": (
        {"type": "object", "allOf": [{"properties": {"a": WHOLE}}], "unevaluatedProperties": False},
        [{"a": 1}, {}],
        [{"b": 1}, {"a": "x"}],
    ),
}
OLD_DRAFTS = {"additionalItems", "nullable"}  # which the validator does not know


def metaschema_keywords() -> set[str]:
    """All keywords of draft 2020-12, from its own description of itself."""
    base = "https://json-schema.org/draft/2020-12/meta/"
    return {name for part in VOCABULARIES for name in REGISTRY.contents(base + part)["properties"]}


def test_every_keyword_of_the_draft_is_known_by_name() -> None:
    known = metaschema_keywords()
    assert len(known) > 50
    for name in known - ENFORCED - REFUSED.keys():
        assert standing(name) == "annotation", name
    assert standing("x-anything") == "annotation"
    assert standing("unknown") == "refused"


def test_every_enforced_keyword_is_proven_here() -> None:
    assert ENFORCEMENT.keys() == ENFORCED


@pytest.mark.parametrize("keyword", sorted(ENFORCED))
def test_what_is_said_to_be_enforced_is(keyword: str) -> None:
    schema, allowed, forbidden = ENFORCEMENT[keyword]
    compiled = compile_schema(rewritten(schema))
    for value in allowed:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert keyword in OLD_DRAFTS or problem(schema, text) is None
        assert accepts(compiled, json.dumps(value) if isinstance(value, str) and "\n" in value else text) or (
            isinstance(value, str) and accepts(compiled, json.dumps(value, ensure_ascii=False))
        ), value
    for value in forbidden:
        assert keyword in OLD_DRAFTS or problem(schema, json.dumps(value)) is not None
        assert not accepts(compiled, json.dumps(value, separators=(",", ":"))), value


ANNOTATED = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.org/s",
    "$comment": "c",
    "title": "t",
    "description": "d",
    "default": 3,
    "examples": [1],
    "deprecated": True,
    "readOnly": True,
    "writeOnly": False,
    "contentMediaType": "text/plain",
    "x-order": 1,
    "discriminator": {"propertyName": "a"},
    "minContains": 3,
}


def test_annotations_change_nothing() -> None:
    assert rewritten({**ANNOTATED, **WHOLE}) == WHOLE


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


REFUSALS: list[tuple[Any, str]] = [
    ({"not": {}}, "not"),
    ({"if": {}, "then": {}}, "if"),
    ({"type": "array", "contains": WHOLE}, "contains"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"dependentSchemas": {}}, "dependentSchemas"),
    ({"dependencies": {}}, "dependencies"),
    ({"$dynamicRef": "#a"}, "$dynamicRef"),
    ({"$recursiveRef": "#"}, "$recursiveRef"),
    (obj(a={"type": "array", "uniqueItems": True}), "properties.a.uniqueItems"),
    (obj(a={**TEXT, "format": "iri"}), "properties.a.format"),
    (obj(a={**TEXT, "format": "date_time"}), "properties.a.format"),
    (obj(**{"a b": {**TEXT, "minLenght": 3}}), 'properties["a b"].minLenght'),
    ({**TEXT, "pattern": "(?=a)b"}, "pattern"),
    ({**TEXT, "pattern": "a\\bb"}, "pattern"),
    ({**TEXT, "pattern": "(a)\\1"}, "pattern"),
    ({**TEXT, "pattern": "a^b"}, "pattern"),
    ({**TEXT, "pattern": "\\p{L}"}, "pattern"),
    ({**TEXT, "pattern": '^"$'}, "pattern"),
    ({**TEXT, "pattern": "^(ab)*c+$", "maxLength": 3}, "pattern"),
    ({**TEXT, "pattern": "a", "format": "date"}, "pattern"),
    ({**WHOLE, "multipleOf": 7, "minimum": 0}, "multipleOf"),
    ({**WHOLE, "multipleOf": 5000}, "multipleOf"),
    ({"type": "number", "multipleOf": 0.01}, "multipleOf"),
    ({"type": "object", "additionalProperties": WHOLE, "minProperties": 2}, "minProperties"),
    ({"patternProperties": {"^a": WHOLE, "b$": TEXT}}, "patternProperties"),
    ({"oneOf": [TEXT, {"maxLength": 3}]}, "oneOf"),
    ({"oneOf": [WHOLE, {"type": "number"}]}, "oneOf"),
    ({"oneOf": [obj(a=TEXT), obj(b=TEXT)]}, "oneOf"),
    ({"$ref": "#/$defs/missing"}, "$ref"),
    ({"$ref": "https://example.org/schema"}, "$ref"),
    ({"$ref": "#anchor"}, "$ref"),
    ({"$ref": "#"}, ""),
    ({"allOf": [{"$ref": "#"}]}, ""),
    ({"anyOf": [{"$ref": "#"}, TEXT]}, ""),
    (obj(a={"$id": "https://example.org/other"}), "properties.a.$id"),
    (
        obj(a={"allOf": [{"unevaluatedProperties": False}, obj(b=TEXT)]}),
        "properties.a.allOf[0].unevaluatedProperties",
    ),
    ({"type": "text"}, "type"),
    ({"type": []}, "type"),
    ({"enum": []}, "enum"),
    ({"enum": [2**70]}, "enum[0]"),
    ({"properties": []}, "properties"),
    (obj(a=3), "properties.a"),
    (obj(a={"required": True}), "properties.a.required"),
    ({"minLength": -1}, "minLength"),
    ({"minimum": "3"}, "minimum"),
    ({"multipleOf": 0}, "multipleOf"),
    ({"pattern": 3}, "pattern"),
    ({"items": 3}, "items"),
    ({"anyOf": []}, "anyOf"),
    (3, ""),
]


@pytest.mark.parametrize(
    ("schema", "path"), REFUSALS, ids=[f"{n}-{path}" for n, (_, path) in enumerate(REFUSALS)]
)
def test_what_cannot_be_enforced_is_refused_by_path(schema: Any, path: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        rewritten(schema)
    assert caught.value.path == "schema" + ("." + path if path and not path.startswith("[") else path)


IMPOSSIBLE: list[Any] = [
    False,
    {"type": "string", "const": 3},
    {"allOf": [TEXT, WHOLE]},
    {**WHOLE, "minimum": 3, "maximum": 2},
    {**WHOLE, "exclusiveMinimum": 3, "exclusiveMaximum": 4},
    {"type": "number", "minimum": 0.1234567, "maximum": 0.1234568},
    {**TEXT, "minLength": 3, "maxLength": 2},
    {"type": "array", "items": False, "minItems": 1},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"type": "object", "additionalProperties": False, "required": ["a"]},
    {"type": "object", "required": ["a", "b"], "maxProperties": 1},
    {"anyOf": [False, {"enum": [1], "type": "string"}]},
    {"type": "object", "properties": {"again": {"$ref": "#"}}, "required": ["again"]},
]


@pytest.mark.parametrize("schema", IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
def test_what_nothing_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(Unsatisfiable):
        rewritten(schema)


@pytest.mark.parametrize("name", sorted(STRINGS))
def test_formats_allow_real_examples_and_refuse_others(name: str) -> None:
    good, bad = FORMAT_SAMPLES[name]
    schema = {"type": "string", "format": name}
    compiled = compile_schema(rewritten(schema))
    for text in good:
        assert problem(schema, json.dumps(text)) is None, text
        assert accepts(compiled, json.dumps(text)), text
    for text in bad:
        assert not accepts(compiled, json.dumps(text)), text


FORMAT_SAMPLES = {
    "date": (
        ["2024-02-29", "2000-02-29", "0001-12-31"],
        ["1900-02-29", "2023-04-31", "2023-13-01", "0000-01-01"],
    ),
    "time": (["12:00:00Z", "23:59:59.123+05:30"], ["24:00:00Z", "12:00:00", "12:00Z", "23:59:60Z"]),
    "date-time": (
        ["2024-02-29T12:00:00Z", "1999-12-31T23:59:59.9-08:00"],
        ["2024-02-30T12:00:00Z", "2024-02-29"],
    ),
    "duration": (["P1Y2M3DT4H5M6S", "PT5M", "P4W"], ["P", "PT", "P1S", "1Y"]),
    "email": (["a.b+c@example.org"], ["a@b", "@example.org", "a..b@example.org", ".a@example.org"]),
    "hostname": (["example.org", "a-b.c"], ["-a.b", "a_b", ""]),
    "ipv4": (["0.0.0.0", "255.255.255.255"], ["256.1.1.1", "010.1.1.1", "1.1.1"]),
    "ipv6": (["::", "::1", "fe80::1:2", "1:2:3:4:5:6:7:8", "1::8"], ["1::2::3", "1:2:3:4:5:6:7:8:9", "g::"]),
    "uuid": (["123e4567-e89b-42d3-a456-426614174000"], ["123e4567e89b42d3a456426614174000", "x"]),
    "uri": (
        ["https://user@example.org:80/a/b?c=d#e", "urn:isbn:123", "mailto:a@b.c"],
        ["/a", "http://[", "a b:c"],
    ),
    "uri-reference": (["/a/b?c", "a/b", "", "#x", "//example.org/a"], ["a b", "\\a"]),
    "uri-template": (["/a/{b}/{+c*}{?d,e:3}"], ["/{a", "{}"]),
    "json-pointer": (["", "/a/b~1c/0"], ["a", "/~2"]),
    "relative-json-pointer": (["1/a", "0#", "2"], ["/a", "-1"]),
}


class TestLimits:
    limits = LimitOptions(max_schema_depth=10, max_schema_parts=200, max_schema_bytes=4096, max_choices=5)

    def refused(self, schema: Any, option: str) -> None:
        with pytest.raises(ConstraintError, match=option):
            check_schema(schema, "schema", self.limits)

    def test_each_is_named(self) -> None:
        nested: Any = {}
        for _ in range(10):
            nested = {"items": nested}
        self.refused(nested, "--max-schema-depth")
        self.refused({"properties": {str(n): {} for n in range(300)}}, "--max-schema-parts")
        self.refused({"description": "x" * 5000}, "--max-schema-bytes")
        self.refused({"enum": [1, 2, 3, 4, 5, 6]}, "--max-choices")

    def test_hostile_nesting_ends_at_once(self) -> None:
        nested: Any = {}
        for _ in range(100_000):
            nested = {"allOf": [nested]}
        with pytest.raises(ConstraintError, match="--max-schema-depth"):
            check_schema(nested, "schema", LimitOptions())
        while nested:  # or its destructor recurses
            nested = nested["allOf"][0]

    def test_long_chains_of_references_need_no_recursion(self) -> None:
        chain: dict[str, Any] = {f"n{n}": obj(next={"$ref": f"#/$defs/n{n + 1}"}) for n in range(2000)}
        rewritten({"$ref": "#/$defs/n0", "$defs": {**chain, "n2000": TEXT}})
        shifted: dict[str, Any] = {
            f"n{n}": obj(next={"$ref": f"#/$defs/n{n + 1}", "minProperties": 0}) for n in range(300)
        }
        rewritten({"$ref": "#/$defs/n0", "$defs": {**shifted, "n300": TEXT}})
        needed = {
            f"n{n}": {**obj(next={"$ref": f"#/$defs/n{n + 1}"}), "required": ["next"]} for n in range(2000)
        }
        rewritten({"$ref": "#/$defs/n0", "$defs": {**needed, "n2000": TEXT}})
        combined = {f"n{n}": {"allOf": [{"$ref": f"#/$defs/n{n + 1}"}]} for n in range(300)}
        with pytest.raises(ConstraintError, match="64"):
            rewritten({"$ref": "#/$defs/n0", "$defs": {**combined, "n300": TEXT}})

    def test_what_multiplies_is_stopped(self) -> None:
        pairs = [{"anyOf": [{"minimum": n}, {"maximum": -n}]} for n in range(1, 15)]
        with pytest.raises(ConstraintError):
            rewritten({"type": "integer", "allOf": pairs})
        doubling = {f"n{n}": {"allOf": [{"$ref": f"#/$defs/n{n + 1}"}] * 2} for n in range(25)}
        assert rewritten({"$ref": "#/$defs/n0", "$defs": {**doubling, "n25": TEXT}})


def test_the_validator_of_these_tests_checks_formats() -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    assert set(STRINGS) <= set(checker.checkers)
