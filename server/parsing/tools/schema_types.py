"""Which JSON types a schema leaves open: it decides how a parameter that is written as bare text is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Types: TypeAlias = frozenset[str]

ANY: Types = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
TEXT: Types = frozenset({"string"})
DEPTH = 16  # schemas nested deeper than this through references and combinations are taken for open


def type_of(value: object) -> str:
    """The JSON type of a decoded value; whole floats are numbers."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list() | tuple():
            return "array"
    return "object"


def types_of(schema: object, root: Mapping[str, Any]) -> Types:
    """The types that a value of `schema`, a part of `root`, may have. Neither need be a sound schema."""
    return _types(schema, root, DEPTH, {})


def _types(schema: object, root: Mapping[str, Any], depth: int, seen: dict[int, Types]) -> Types:
    """`seen`: what is known of schemas already looked at, so that references cannot multiply the work."""
    if not isinstance(schema, Mapping) or not depth:
        return ANY
    if id(schema) in seen:
        return seen[id(schema)]
    types = seen[id(schema)] = ANY
    declared = schema.get("type")
    if isinstance(declared, str):
        declared = [declared]
    if isinstance(declared, list):
        types &= {name for name in declared if isinstance(name, str)}
        if "number" in types:
            types |= {"integer"}
    if "const" in schema:
        types &= {type_of(schema["const"])}
    elif isinstance(schema.get("enum"), list):
        types &= {type_of(value) for value in schema["enum"]}
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            branches = [_types(part, root, depth - 1, seen) for part in schema[keyword]]
            types &= frozenset().union(*branches)
    if isinstance(schema.get("allOf"), list):
        for part in schema["allOf"]:
            types &= _types(part, root, depth - 1, seen)
    if isinstance(schema.get("$ref"), str):
        types &= _types(resolve(schema["$ref"], root), root, depth - 1, seen)
    seen[id(schema)] = types or ANY
    return seen[id(schema)]


def resolve(reference: str, root: Mapping[str, Any]) -> object:
    """What `#/a/b` points at in `root`; None for what is not there."""
    node: object = root
    if not reference.startswith("#"):
        return None
    for step in filter(None, reference[1:].split("/")):
        if not isinstance(node, Mapping):
            return None
        node = node.get(step.replace("~1", "/").replace("~0", "~"))
    return node
