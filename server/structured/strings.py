"""The texts that a conjunction allows, as one regular expression."""

from __future__ import annotations

from typing import Any

from . import char_sets, formats, regex
from .builder import Builder
from .conjunction import Conjunction, at
from .errors import ConstraintError, Unsatisfiable
from .regex_reader import read_regex


def regex_of(pattern: str, path: str, builder: Builder) -> regex.Node:
    limit = builder.limits.max_regex_length
    if len(pattern) > limit:
        raise ConstraintError(
            path, f"{len(pattern)} characters are more than this server allows, {limit} (--max-regex-length)"
        )
    return read_regex(pattern, path, search=True)


def string_schema(wanted: Conjunction, builder: Builder) -> dict[str, Any]:
    node = text_of(wanted, builder)
    return {"type": "string"} if node is None else {"type": "string", "pattern": regex.written(node)}


def text_of(wanted: Conjunction, builder: Builder) -> regex.Node | None:
    """The texts that are allowed; None for all."""
    low, high = wanted.min_length, wanted.max_length
    if high is not None and low > high:
        raise Unsatisfiable(at(wanted.path, "minLength"), f"{low} is more than maxLength, {high}")
    places = list(wanted.patterns.items())
    for name in wanted.formats:
        places = [place for place in places if place[0] not in formats.REPEATED_AS_PATTERN.get(name, ())]
    if len(places) + len(wanted.formats) > 1:
        named = [*wanted.formats.values(), *(path for _, path in places)]
        raise ConstraintError(named[1], f"cannot be enforced together with {named[0]}")
    if not places and not wanted.formats:
        if low == 0 and high is None:
            return None
        if max(low, high or 0) > regex.MAX_COUNT:
            keyword = "maxLength" if low <= regex.MAX_COUNT else "minLength"
            raise ConstraintError(at(wanted.path, keyword), f"more than {regex.MAX_COUNT} is not supported")
        return regex.Repeat(regex.Chars(char_sets.JSON_PLAIN), low, high)
    if wanted.formats:
        ((name, path),) = wanted.formats.items()
        node = read_regex(formats.STRINGS[name], path, search=False)
    else:
        ((pattern, path),) = places
        node = regex_of(pattern, path, builder)
    node = regex.for_json_string(node, path)
    fitting = regex.limited(node, low, high)
    if fitting is None:
        raise ConstraintError(
            path, "cannot be enforced together with minLength or maxLength: write it into the pattern"
        )
    return fitting
