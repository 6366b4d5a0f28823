"""What the object that a tool takes as arguments may look like, for formats that write one parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from ...structured import regex
from ...structured.char_sets import Ranges
from ...structured.regex_reader import read_regex
from .schema_types import ANY, Types, resolve, types_of

Schema: TypeAlias = Mapping[str, Any]

Flat: TypeAlias = dict[str, Any]

ANY_NAME = "^[a-zA-Z_][a-zA-Z0-9_]{0,63}$"
DEPTH = 8
MOST = 32  # alternatives


class Parameter(Struct, frozen=True):
    key: str
    schema: object
    required: bool


class Others(Struct, frozen=True):
    """Parameters beside the declared ones: the pattern of their names, their schema, and how many there may be."""

    names: str
    schema: object
    low: int = 0
    high: int | None = None

    def names_of(self, chars: Ranges) -> str | None:
        """The pattern of those names that consist of `chars`; None if there are none."""
        node = regex.within(read_regex(self.names, "patternProperties", search=True), chars)
        return None if node is None else regex.written(node)


class Shape(Struct, frozen=True):
    """The declared parameters in their order, and what else there may be."""

    parameters: tuple[Parameter, ...]
    others: Others | None


def shapes_of(schema: Schema) -> list[Shape]:
    """The alternatives of an object schema: references followed, `allOf` joined, `anyOf` and `oneOf` spread out.

    For a schema as `check_schema` of `server/structured/schema.py` rewrites it, objects of these shapes fit it; some
    that fit are missing where a bound on the number of parameters leaves a choice. For any other they tell the types.
    """
    return [_shape(flat) for flat in _flat(schema, schema, DEPTH, {})]


def types_in(shapes: list[Shape], root: Schema, key: str) -> Types:
    """The types that parameter `key` may have."""
    found: Types = frozenset()
    for shape in shapes:
        schemas = [parameter.schema for parameter in shape.parameters if parameter.key == key]
        for schema in schemas or [shape.others and shape.others.schema]:
            found |= types_of(schema, root)
    return found or ANY


def _flat(schema: object, root: Schema, depth: int, seen: dict[int, list[Flat]]) -> list[Flat]:
    """Schemas without references and combinations, any of which does. `seen`: of schemas looked at before."""
    if not isinstance(schema, Mapping) or not depth:
        return [{}]
    if id(schema) in seen:
        return seen[id(schema)]
    seen[id(schema)] = [{}]
    flat = [{key: value for key, value in schema.items() if key not in ("$ref", "allOf", "anyOf", "oneOf")}]
    groups = [[part] for part in _list(schema.get("allOf"))]
    if isinstance(schema.get("$ref"), str):
        groups.append([resolve(schema["$ref"], root)])
    groups += [_list(schema.get(keyword)) for keyword in ("anyOf", "oneOf") if schema.get(keyword)]
    for group in groups:
        branches = [branch for part in group[:MOST] for branch in _flat(part, root, depth - 1, seen)]
        flat = [_joined(one, branch) for one in flat for branch in branches][:MOST] or flat
    seen[id(schema)] = flat
    return flat


def _joined(one: Flat, other: Flat) -> Flat:
    joined = one | other
    for keyword in ("properties", "patternProperties"):
        joined[keyword] = {**_map(one.get(keyword)), **_map(other.get(keyword))}
    joined["required"] = [*_list(one.get("required")), *_list(other.get("required"))]
    return joined


def _shape(schema: Flat) -> Shape:
    properties = _map(schema.get("properties"))
    required = {key for key in _list(schema.get("required")) if isinstance(key, str)}
    low, high = _count(schema.get("minProperties")) or 0, _count(schema.get("maxProperties"))
    keys = [key for key in properties if key in required]
    keys += [key for key in properties if key not in required]
    kept = keys[:high]
    forced = required | set(kept[:low])
    declared = tuple(Parameter(key, value, key in forced) for key, value in properties.items() if key in kept)
    left = None if high is None else high - len(declared)
    return Shape(declared, None if left == 0 else _others(schema, max(low - len(declared), 0), left))


def _others(schema: Flat, low: int, high: int | None) -> Others | None:
    for names, value in _map(schema.get("patternProperties")).items():
        return Others(names, value, low, high)
    value = schema.get("additionalProperties", True)
    if value is False or (value is True and _map(schema.get("properties"))):
        return None
    return Others(ANY_NAME, value, low, high)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _map(value: object) -> Schema:
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None
