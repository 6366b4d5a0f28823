"""Does every definition of a rewritten schema have a value that ends, and does none begin with itself?"""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import Any

from .errors import ConstraintError, Unsatisfiable

MAX_ROUNDS = (
    40  # definitions in an unlucky order could take as many rounds as there are: then nothing is said
)


def check_productive(top: dict[str, Any], definitions: dict[str, dict[str, Any]], path: str) -> None:
    """Raises `ConstraintError` for a definition that refers to itself with nothing in between, and `Unsatisfiable` for
    one whose values could never end (a required member of its own kind)."""
    try:
        list(TopologicalSorter({name: heads(schema) for name, schema in definitions.items()}).static_order())
    except CycleError:
        raise ConstraintError(path, "a definition refers to itself without anything in between") from None
    known: set[str] = set()
    waiting = list(definitions)
    for _ in range(MAX_ROUNDS):
        waiting.reverse()
        left: list[str] = []
        for name in waiting:
            if ends(definitions[name], known):
                known.add(name)
            else:
                left.append(name)
        if not left:
            return
        if len(left) == len(waiting):
            raise Unsatisfiable(path, "a value of a recursive definition could never end")
        waiting = left


def name_of(schema: dict[str, Any]) -> str:
    reference: str = schema["$ref"]
    return reference.rpartition("/")[2]


def heads(schema: dict[str, Any]) -> set[str]:
    """Definitions whose value is the whole value."""
    if "$ref" in schema:
        return {name_of(schema)}
    return set().union(*map(heads, schema.get("anyOf", ())))


def ends(schema: dict[str, Any], known: set[str]) -> bool:
    """Is there a finite value, if the definitions in `known` have one?"""
    if "$ref" in schema:
        return name_of(schema) in known
    if "anyOf" in schema:
        return any(ends(option, known) for option in schema["anyOf"])
    match schema.get("type"):
        case "array":
            first = schema.get("prefixItems", [])
            least = schema.get("minItems", 0)
            if not all(ends(item, known) for item in first[:least]):
                return False
            rest = schema.get("items", {})
            return least <= len(first) or (rest is not False and ends(rest, known))
        case "object":
            properties = schema.get("properties", {})
            return all(ends(properties[name], known) for name in schema.get("required", ()))
    return True
