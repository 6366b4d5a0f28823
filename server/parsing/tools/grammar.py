"""The structural tags that tool-call formats are put together from (the nodes are xgrammar's)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..interface import TagFormat, ToolSchema

MAX_WHITESPACE = 8  # consecutive white space that JSON arguments may contain: room to indent, no endless runs


def text(value: str) -> TagFormat:
    return {"type": "const_string", "value": value}


def pattern(expression: str) -> TagFormat:
    return {"type": "regex", "pattern": expression}


def sequence(*elements: TagFormat) -> TagFormat:
    return elements[0] if len(elements) == 1 else {"type": "sequence", "elements": list(elements)}


def either(*elements: TagFormat) -> TagFormat:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": list(elements)}


def optional(content: TagFormat) -> TagFormat:
    return {"type": "optional", "content": content}


def repeated(content: TagFormat, low: int, high: int | None) -> TagFormat:
    """`low` to `high` times; None = without end."""
    return {"type": "repeat", "content": content, "min": low, "max": -1 if high is None else high}


def tag(begin: str, content: TagFormat, end: str) -> TagFormat:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What parts of a schema may refer to: it goes with them where they are taken out of it."""
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def json_value(schema: Mapping[str, Any] | bool) -> TagFormat:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": MAX_WHITESPACE}


def parameters_of(tool: ToolSchema, *, enforced: bool) -> dict[str, Any]:
    """The schema that a call's arguments have to fit: an object's."""
    if not (enforced or tool.strict):
        return {"type": "object"}
    return {"type": "object", **tool.parameters}


def json_arguments(tool: ToolSchema, *, enforced: bool) -> TagFormat:
    return json_value(parameters_of(tool, enforced=enforced))


def separated(tags: Sequence[TagFormat], separator: str, *, at_most_one: bool) -> TagFormat:
    """One or more of these, and nothing else."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": at_most_one,
    }


def answer(
    tags: Sequence[TagFormat],
    trigger: str,
    separator: str,
    *,
    at_least_one: bool,
    at_most_one: bool,
    excludes: Sequence[str] = (),
) -> TagFormat:
    """Calls alone, with `separator` between them; or text (with none of `excludes`) in which `trigger` begins one."""
    if at_least_one:
        return separated(tags, separator, at_most_one=at_most_one)
    return {
        "type": "triggered_tags",
        "triggers": [trigger],
        "tags": list(tags),
        "at_least_one": False,
        "stop_after_first": at_most_one,
        "excludes": list(excludes),
    }
