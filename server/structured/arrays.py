"""The part of a conjunction that speaks of arrays, as one schema: which items, how many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .builder import Builder
from .conjunction import Conjunction, Located, at
from .errors import ConstraintError, Unsatisfiable


def array_schema(wanted: Conjunction, builder: Builder) -> dict[str, Any]:
    low, high = wanted.min_items, wanted.max_items
    described = max((len(items.first) for items in wanted.items), default=0)
    first: list[dict[str, Any]] = []
    for index in range(described if high is None else min(described, high)):
        try:
            first.append(builder.build(tuple(item_parts(wanted, index))))
        except Unsatisfiable:
            high = index
            break
    rest: dict[str, Any] | bool = False
    if high is None or high > len(first):
        parts = tuple(item_parts(wanted, described))
        try:
            rest = builder.build(parts)
        except Unsatisfiable:
            high = len(first)
    if high is not None and low > high:
        raise Unsatisfiable(
            at(wanted.path, "minItems"), f"{low} is more than the {high} items that there may be"
        )
    if wanted.unique is not None and (high is None or high > 1):
        raise ConstraintError(
            wanted.unique, "`uniqueItems` cannot be enforced: leave it out, or set maxItems to 1"
        )
    schema: dict[str, Any] = {"type": "array"}
    if first:
        schema["prefixItems"] = first
    schema["items"] = rest
    if low:
        schema["minItems"] = low
    if high is not None and rest is not False:
        schema["maxItems"] = high
    return schema


def item_parts(wanted: Conjunction, index: int) -> Iterable[Located]:
    """All that is said of one item; an index behind the described ones stands for all the others."""
    said = False
    for items in wanted.items:
        if index < len(items.first):
            said = True
            yield items.first[index]
        elif items.rest is not None:
            said = True
            yield items.rest
    if wanted.unevaluated_items is not None and not said:
        yield wanted.unevaluated_items
