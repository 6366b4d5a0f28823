"""The part of a conjunction that speaks of objects, as one schema: which members, in which order, how many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import regex
from .builder import Builder
from .conjunction import Conjunction, Located, at
from .errors import ConstraintError, Unsatisfiable
from .strings import regex_of, text_of
from .values import chosen_values

MAX_EXCLUDED = (
    200  # names that those of further members are told from; an object that describes more has no others
)


class Names:
    """What is demanded of the names of an object's members: one of a list, a regular expression, or nothing."""

    def __init__(self, wanted: Conjunction, builder: Builder) -> None:
        self.listed: list[str] | None = None
        self.node: regex.Node | None = None
        self._matcher = builder.matcher
        if wanted.names:
            demand = builder.together(wanted.names)
            if demand.choices or (demand.types is not None and "string" not in demand.types):
                raise ConstraintError(
                    wanted.names[0].path, "only a schema of strings, without choices, can be enforced"
                )
            if demand.values is not None:
                self.listed = [value for value in chosen_values(demand, builder) if isinstance(value, str)]
            else:
                self.node = text_of(demand, builder)

    def allow(self, name: str) -> bool:
        if self.listed is not None:
            return name in self.listed
        return self.node is None or self._matcher.matches(self.node, name)


def object_schema(wanted: Conjunction, builder: Builder) -> dict[str, Any]:
    patterns = read_patterns(wanted, builder)
    names = Names(wanted, builder)
    described = dict.fromkeys(name for members in wanted.members for name in members.properties)
    others = tuple(other_parts(wanted))
    is_open = bool(others) or not described
    if any(part.schema is False for part in others):
        is_open = False
    listed = dict.fromkeys(names.listed or ()) if is_open or patterns else {}

    properties: dict[str, dict[str, Any]] = {}
    for name in (*described, *(name for name in (*wanted.required, *listed) if name not in described)):
        if name in properties:
            continue
        try:
            if not names.allow(name):
                raise Unsatisfiable(wanted.path, f"`{name[:40]}` is not a name that propertyNames allows")
            parts = tuple(member_parts(wanted, name, patterns, builder.matcher))
            properties[name] = builder.build(parts)
        except Unsatisfiable as error:
            if name in wanted.required:
                raise Unsatisfiable(
                    wanted.required[name], f"`{name[:40]}` can have no value: {error}"
                ) from None

    schema: dict[str, Any] = {"type": "object"}
    if properties:
        schema["properties"] = properties
    if wanted.required:
        schema["required"] = [name for name in properties if name in wanted.required]
    mentioned = {*described, *wanted.required, *listed}
    further = further_members(wanted, builder, patterns, names, mentioned, others if is_open else None)
    schema.update(further)
    may_have_others = "patternProperties" in further or further["additionalProperties"] is not False
    return {**schema, **how_many(wanted, properties, may_have_others)}


def read_patterns(wanted: Conjunction, builder: Builder) -> dict[str, regex.Node]:
    """The regular expressions of patternProperties, by their text."""
    return {
        pattern: regex_of(pattern, at(at(members.path, "patternProperties"), pattern), builder)
        for members in wanted.members
        for pattern in members.patterns
    }


def other_parts(wanted: Conjunction) -> Iterable[Located]:
    """What is said of members that no schema names."""
    rests = [members.rest for members in wanted.members if members.rest is not None]
    if not rests and wanted.unevaluated_properties is not None:
        return [wanted.unevaluated_properties]
    return rests


def member_parts(
    wanted: Conjunction, name: str, patterns: dict[str, regex.Node], matcher: regex.Matcher
) -> Iterable[Located]:
    """All that is said of the member of this name."""
    evaluated = False
    for members in wanted.members:
        own = [members.properties[name]] if name in members.properties else []
        own += [
            part for pattern, part in members.patterns.items() if matcher.matches(patterns[pattern], name)
        ]
        if not own and members.rest is not None:
            own = [members.rest]
        evaluated = evaluated or bool(own)
        yield from own
    if not evaluated and wanted.unevaluated_properties is not None:
        yield wanted.unevaluated_properties


def further_members(
    wanted: Conjunction,
    builder: Builder,
    patterns: dict[str, regex.Node],
    names: Names,
    mentioned: set[str],
    others: tuple[Located, ...] | None,
) -> dict[str, Any]:
    """The keywords that say which members there may be beside those `mentioned`.

    The compiler keeps no account of names that were used, so the names it is given never meet a mentioned one.
    """
    closed = {"additionalProperties": False}
    try:
        if patterns:
            return closed | pattern_members(wanted, builder, patterns, names, mentioned)
        if others is None or names.listed is not None:
            return closed
        value = builder.build(others)
    except Unsatisfiable:
        return closed
    if names.node is not None:
        if any(builder.matcher.matches(names.node, name) for name in mentioned):
            return closed
        return closed | {"patternProperties": {regex.written(names.node): value}}
    if len(mentioned) > MAX_EXCLUDED:
        return closed
    if mentioned:
        return closed | {"patternProperties": {regex.written(regex.other_than(mentioned)): value}}
    return {"additionalProperties": value}


def pattern_members(
    wanted: Conjunction,
    builder: Builder,
    patterns: dict[str, regex.Node],
    names: Names,
    mentioned: set[str],
) -> dict[str, Any]:
    """Members whose name matches a pattern; none where such a name might be one of those mentioned."""
    pattern, *more = patterns
    path = next(at(members.path, "patternProperties") for members in wanted.members if members.patterns)
    if more:
        raise ConstraintError(path, "more than one pattern cannot be enforced: a name may match two of them")
    if names.node is not None:
        raise ConstraintError(path, "cannot be enforced together with propertyNames")
    if names.listed is not None:
        return {}
    if any(builder.matcher.matches(patterns[pattern], name) for name in mentioned):
        return {}
    parts = [members.patterns.get(pattern, members.rest) for members in wanted.members]
    node = regex.for_json_string(patterns[pattern], at(path, pattern))
    value = builder.build(tuple(part for part in parts if part is not None))
    return {"patternProperties": {regex.written(node): value}}


def how_many(wanted: Conjunction, properties: dict[str, Any], is_open: bool) -> dict[str, int]:
    """minProperties and maxProperties, where the members themselves do not see to it."""
    low, high = wanted.min_properties, wanted.max_properties
    needed = sum(name in wanted.required for name in properties)
    bounds: dict[str, int] = {}
    if high is not None and high < max(needed, low):
        raise Unsatisfiable(
            at(wanted.path, "maxProperties"),
            f"{high} is less than the {max(needed, low)} members that there must be",
        )
    if not is_open and low > len(properties):
        raise Unsatisfiable(
            at(wanted.path, "minProperties"),
            f"{low} is more than the {len(properties)} members that there may be",
        )
    if low > needed:
        if is_open and low > needed + 1:
            raise ConstraintError(
                at(wanted.path, "minProperties"),
                "cannot be enforced for members that are not named in `properties`: one name may come twice",
            )
        bounds["minProperties"] = low
    if high is not None and (is_open or high < len(properties)):
        bounds["maxProperties"] = high
    return bounds
