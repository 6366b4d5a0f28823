"""What several schemas demand of one value together: their keywords, sorted by what they speak of and merged.

A schema with siblings of `$ref`, `allOf` and the like is such a conjunction too. The compiler reads one keyword of
these and drops the rest, so it is only ever shown schemas in which nothing is left to combine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from . import formats, keywords
from .errors import ConstraintError, Unsatisfiable

TYPES = ("null", "boolean", "string", "number", "integer", "array", "object")
MAX_CHAIN = 64
Schema: TypeAlias = dict[str, Any] | bool


class Located(NamedTuple):
    """A schema of the client's and where it stands."""

    schema: Schema
    path: str

    @property
    def key(self) -> int:
        """The same for two mentions of one schema; schemas live as long as the request."""
        return id(self.schema)


class Choice(NamedTuple):
    """One `anyOf` or `oneOf`. `within` are the schemas that lead to it: an option that is one of them never ends."""

    options: list[Located]
    path: str
    within: tuple[int, ...]
    exclusive: bool  # oneOf: no value may satisfy two


class Items(NamedTuple):
    """What one schema says of an array's items."""

    first: list[Located]
    rest: Located | None


class Members(NamedTuple):
    """What one schema says of an object's members; `rest` None: nothing of the others."""

    properties: dict[str, Located]
    patterns: dict[str, Located]
    rest: Located | None
    path: str


@dataclass(slots=True)
class Conjunction:
    """All that is demanded. Lists hold one entry per schema that says something; `None` says nothing."""

    path: str
    types: frozenset[str] | None = None
    values: list[Any] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    multiples: list[float] = field(default_factory=list)
    min_length: int = 0
    max_length: int | None = None
    patterns: dict[str, str] = field(default_factory=dict)  # pattern -> its path
    formats: dict[str, str] = field(default_factory=dict)
    min_items: int = 0
    max_items: int | None = None
    unique: str | None = None  # path
    items: list[Items] = field(default_factory=list)
    members: list[Members] = field(default_factory=list)
    required: dict[str, str] = field(default_factory=dict)
    names: list[Located] = field(default_factory=list)
    min_properties: int = 0
    max_properties: int | None = None
    unevaluated_items: Located | None = None
    unevaluated_properties: Located | None = None
    choices: list[Choice] = field(default_factory=list)
    said: set[str] = field(default_factory=set)  # keywords that were met
    absorbed: set[int] = field(default_factory=set)

    def copy(self) -> Conjunction:
        """Independent of this one."""
        own: dict[str, Any] = {
            name: value.copy()
            for name in self.__dataclass_fields__
            if isinstance(value := getattr(self, name), (list, dict, set))
        }
        return replace(self, **own)


def fail(path: str, keyword: str, expected: str) -> ConstraintError:
    return ConstraintError(at(path, keyword), f"must be {expected}")


def at(path: str, name: str | int) -> str:
    """The path of a member."""
    if isinstance(name, int):
        return f"{path}[{name}]"
    if name.replace("_", "").replace("$", "").replace("-", "").isalnum() and len(name) <= 40:
        return f"{path}.{name}"
    return f"{path}[{json.dumps(name[:40], ensure_ascii=False)}]"


def as_schema(value: Any, path: str) -> Located:
    if not isinstance(value, (dict, bool)):
        raise ConstraintError(path, "must be a schema, which is an object or a boolean")
    return Located(value, path)


def schemas(value: Any, path: str, keyword: str) -> list[Located]:
    place = at(path, keyword)
    if not isinstance(value, list) or not value:
        raise ConstraintError(place, "must be a list of schemas that is not empty")
    return [as_schema(option, at(place, index)) for index, option in enumerate(value)]


def named_schemas(value: Any, path: str, keyword: str) -> dict[str, Located]:
    place = at(path, keyword)
    if not isinstance(value, dict):
        raise ConstraintError(place, "must be an object whose values are schemas")
    return {name: as_schema(schema, at(place, name)) for name, schema in value.items()}


def number(value: Any, path: str, keyword: str) -> float:
    """An int stays one: Python compares it exactly with floats."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise fail(path, keyword, "a number")
    return value


def count(value: Any, path: str, keyword: str) -> int:
    checked = number(value, path, keyword)
    if checked < 0 or checked != int(checked):
        raise fail(path, keyword, "a whole number, at least 0")
    return int(checked)


def text(value: Any, path: str, keyword: str) -> str:
    if not isinstance(value, str):
        raise fail(path, keyword, "a string")
    return value


def least(one: Any, other: Any) -> Any:
    return other if one is None else min(one, other)


def greatest(one: Any, other: Any) -> Any:
    return other if one is None else max(one, other)


def intersected(one: frozenset[str] | None, other: frozenset[str]) -> frozenset[str]:
    """Types that both allow; an integer is a number."""
    if one is None:
        return other
    both = one & other
    if ("number" in one and "integer" in other) or ("integer" in one and "number" in other):
        both |= {"integer"}
    return both - {"integer"} if "number" in both else both


def canonical(value: Any) -> str:
    """Equal for values that JSON Schema takes for equal: 1 and 1.0, members in any order."""

    def same(part: Any) -> Any:
        if isinstance(part, float) and part.is_integer():
            return int(part)
        if isinstance(part, dict):
            return {name: same(inner) for name, inner in part.items()}
        return [same(inner) for inner in part] if isinstance(part, list) else part

    return json.dumps(same(value), sort_keys=True)


def has_type(value: Any, types: frozenset[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    if isinstance(value, (int, float)):
        return "number" in types or ("integer" in types and value == int(value))
    for kind, name in ((str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name in types
    return "null" in types


class Absorber:
    """Adds schemas to conjunctions. `resolve` finds what a `$ref` points at, given it and its path."""

    def __init__(
        self, root: Located, resolve: Callable[[str, str], Located], spend: Callable[[str], None]
    ) -> None:
        self._root = root.key
        self._resolve = resolve
        self._spend = spend

    def add(self, into: Conjunction, located: Located, within: tuple[int, ...] = ()) -> None:
        """Raises `ConstraintError`; `Unsatisfiable` where nothing can meet both."""
        schema, path = located
        self._spend(path)
        if schema is True:
            return
        if schema is False:
            raise Unsatisfiable(path, "allows no value at all")
        assert isinstance(schema, dict)
        if located.key in within:
            raise ConstraintError(path, "refers to itself without anything in between")
        if len(within) >= MAX_CHAIN:
            raise ConstraintError(
                path, f"is reached over more than {MAX_CHAIN} references or nested combinations"
            )
        if located.key in into.absorbed:
            return
        into.absorbed.add(located.key)
        within = (*within, located.key)
        for keyword in schema:
            standing = keywords.standing(keyword)
            if standing == "enforced":
                into.said.add(keyword)
            elif standing == "refused":
                why = keywords.REFUSED.get(keyword, "is not a keyword of JSON Schema that is known here")
                raise ConstraintError(at(path, keyword), f"`{keyword[:40]}` {why}")
            elif keyword == "$id" and located.key != self._root and not str(schema["$id"]).startswith("#"):
                raise ConstraintError(
                    at(path, "$id"), "is only supported at the top: references are relative to it"
                )
        self._general(into, schema, path)
        self._numbers(into, schema, path)
        self._strings(into, schema, path)
        self._arrays(into, schema, path)
        self._objects(into, schema, path)
        if "$ref" in schema:
            target = self._resolve(text(schema["$ref"], path, "$ref"), at(path, "$ref"))
            self.add(into, target, within)
        for part in schemas(schema["allOf"], path, "allOf") if "allOf" in schema else ():
            self.add(into, part, within)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                into.choices.append(
                    Choice(
                        schemas(schema[keyword], path, keyword), at(path, keyword), within, keyword == "oneOf"
                    )
                )

    def _general(self, into: Conjunction, schema: dict[str, Any], path: str) -> None:
        if "type" in schema:
            types = self._types(schema, path)
            into.types = intersected(into.types, types)
            if not into.types:
                raise Unsatisfiable(at(path, "type"), "contradicts the types that are allowed elsewhere")
        elif schema.get("nullable") is True:
            raise ConstraintError(at(path, "nullable"), "`nullable` has a meaning only beside `type`")
        for values in self._values(schema, path):
            if into.values is None:
                into.values = values
            else:
                both = {canonical(value) for value in values}
                into.values = [value for value in into.values if canonical(value) in both]
            if not into.values:
                raise Unsatisfiable(path, "no value is in all of the enumerations")

    def _types(self, schema: dict[str, Any], path: str) -> frozenset[str]:
        given = schema["type"]
        listed = given if isinstance(given, list) else [given]
        for name in listed:
            if name not in TYPES:
                raise fail(path, "type", f"one of {', '.join(TYPES)}, or a list of them")
        if not listed:
            raise fail(path, "type", "a list that is not empty")
        types = frozenset(listed)
        if schema.get("nullable") is True:
            types |= {"null"}
        return types - {"integer"} if "number" in types else types

    def _values(self, schema: dict[str, Any], path: str) -> Iterator[list[Any]]:
        if "const" in schema:
            yield [checked_value(schema["const"], at(path, "const"))]
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list) or not values:
                raise fail(path, "enum", "a list that is not empty")
            seen: dict[str, Any] = {}
            for index, value in enumerate(values):
                place = at(at(path, "enum"), index)
                seen.setdefault(canonical(checked_value(value, place)), value)
            yield list(seen.values())

    def _numbers(self, into: Conjunction, schema: dict[str, Any], path: str) -> None:
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        # Draft 4: a boolean that says how `minimum` is meant.
        if isinstance(above, bool):
            low, above = (None, low) if above else (low, None)
        if isinstance(below, bool):
            high, below = (None, high) if below else (high, None)
        if low is not None:
            into.minimum = greatest(into.minimum, number(low, path, "minimum"))
        if high is not None:
            into.maximum = least(into.maximum, number(high, path, "maximum"))
        if above is not None:
            into.above = greatest(into.above, number(above, path, "exclusiveMinimum"))
        if below is not None:
            into.below = least(into.below, number(below, path, "exclusiveMaximum"))
        if "multipleOf" in schema:
            step = number(schema["multipleOf"], path, "multipleOf")
            if step <= 0:
                raise fail(path, "multipleOf", "more than 0")
            into.multiples.append(step)

    def _strings(self, into: Conjunction, schema: dict[str, Any], path: str) -> None:
        if "minLength" in schema:
            into.min_length = max(into.min_length, count(schema["minLength"], path, "minLength"))
        if "maxLength" in schema:
            into.max_length = least(into.max_length, count(schema["maxLength"], path, "maxLength"))
        if "pattern" in schema:
            into.patterns.setdefault(text(schema["pattern"], path, "pattern"), at(path, "pattern"))
        if "format" in schema:
            name = text(schema["format"], path, "format")
            if name in formats.INTEGERS:
                low, high = formats.INTEGERS[name]
                into.minimum, into.maximum = greatest(into.minimum, low), least(into.maximum, high)
            elif name in formats.STRINGS:
                into.formats.setdefault(name, at(path, "format"))
            elif name not in formats.HINTS:
                known = ", ".join(sorted(formats.STRINGS))
                raise ConstraintError(
                    at(path, "format"), f"`{name[:40]}` cannot be enforced; what can: {known}"
                )

    def _arrays(self, into: Conjunction, schema: dict[str, Any], path: str) -> None:
        if "minItems" in schema:
            into.min_items = max(into.min_items, count(schema["minItems"], path, "minItems"))
        if "maxItems" in schema:
            into.max_items = least(into.max_items, count(schema["maxItems"], path, "maxItems"))
        unique = schema.get("uniqueItems", False)
        if not isinstance(unique, bool):
            raise fail(path, "uniqueItems", "a boolean")
        if unique:
            into.unique = at(path, "uniqueItems")
        first: list[Located] = []
        rest = None
        if isinstance(schema.get("items"), list):  # draft 4 to 2019-09: a tuple
            if schema["items"]:
                first = schemas(schema["items"], path, "items")
            if "additionalItems" in schema:
                rest = as_schema(schema["additionalItems"], at(path, "additionalItems"))
        else:
            if "prefixItems" in schema:
                first = schemas(schema["prefixItems"], path, "prefixItems")
            if "items" in schema:
                rest = as_schema(schema["items"], at(path, "items"))
        if first or rest is not None:
            into.items.append(Items(first, rest))
        if "unevaluatedItems" in schema:
            self._outermost(into, path, "unevaluatedItems")
            into.unevaluated_items = as_schema(schema["unevaluatedItems"], at(path, "unevaluatedItems"))

    def _objects(self, into: Conjunction, schema: dict[str, Any], path: str) -> None:
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise fail(path, "required", "a list of names")
        for name in required:
            into.required.setdefault(name, at(path, "required"))
        if "minProperties" in schema:
            into.min_properties = max(
                into.min_properties, count(schema["minProperties"], path, "minProperties")
            )
        if "maxProperties" in schema:
            into.max_properties = least(
                into.max_properties, count(schema["maxProperties"], path, "maxProperties")
            )
        if "propertyNames" in schema:
            into.names.append(as_schema(schema["propertyNames"], at(path, "propertyNames")))
        properties = named_schemas(schema.get("properties", {}), path, "properties")
        patterns = named_schemas(schema.get("patternProperties", {}), path, "patternProperties")
        rest = None
        if "additionalProperties" in schema:
            rest = as_schema(schema["additionalProperties"], at(path, "additionalProperties"))
        if properties or patterns or rest is not None:
            into.members.append(Members(properties, patterns, rest, path))
        if "unevaluatedProperties" in schema:
            self._outermost(into, path, "unevaluatedProperties")
            into.unevaluated_properties = as_schema(
                schema["unevaluatedProperties"], at(path, "unevaluatedProperties")
            )

    def _outermost(self, into: Conjunction, path: str, keyword: str) -> None:
        """What is unevaluated depends on the schemas inside this one, and not on those around it."""
        if len(into.absorbed) > 1:
            raise ConstraintError(
                at(path, keyword), f"`{keyword}` can be enforced only where its schema is not part of another"
            )


def checked_value(value: Any, path: str) -> Any:
    """A constant that the compiler writes exactly: numbers are 64-bit integers or doubles to it."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, int) and not -(2**63) < part < 2**63:
            raise ConstraintError(path, "has an integer of more than 64 bits")
        if isinstance(part, float) and not math.isfinite(part):
            raise ConstraintError(path, "has a number out of range")
        stack += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return value
