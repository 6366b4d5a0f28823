"""Which of the values that a conjunction enumerates meet its other demands."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from . import formats
from .builder import Builder
from .conjunction import Conjunction, has_type
from .errors import ConstraintError, Unsatisfiable
from .regex_reader import read_regex
from .strings import regex_of


def chosen_values(wanted: Conjunction, builder: Builder) -> list[Any]:
    """Those of the enumerated values that meet the other demands."""
    assert wanted.values is not None
    if len(wanted.values) > builder.limits.max_choices:
        raise ConstraintError(
            wanted.path,
            f"{len(wanted.values)} values are more than this server allows, {builder.limits.max_choices} "
            "(--max-choices)",
        )
    tests = [regex_of(pattern, path, builder) for pattern, path in wanted.patterns.items()]
    tests += [read_regex(formats.STRINGS[name], path, search=False) for name, path in wanted.formats.items()]
    kept = []
    for value in wanted.values:
        if wanted.types is not None and not has_type(value, wanted.types):
            continue
        if isinstance(value, (dict, list)) and (
            wanted.members or wanted.required or wanted.items or wanted.names
        ):
            raise ConstraintError(
                wanted.path, "enumerated objects and arrays cannot be checked against their schema"
            )
        if within_bounds(value, wanted) and not (
            isinstance(value, str) and not all(builder.matcher.matches(test, value) for test in tests)
        ):
            kept.append(value)
    if not kept:
        raise Unsatisfiable(wanted.path, "none of the enumerated values meets the other keywords")
    return kept


def within_bounds(value: Any, wanted: Conjunction) -> bool:
    size: tuple[int, int | None] = (0, None)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, (int, float)):
        return (
            (wanted.minimum is None or value >= wanted.minimum)
            and (wanted.maximum is None or value <= wanted.maximum)
            and (wanted.above is None or value > wanted.above)
            and (wanted.below is None or value < wanted.below)
            and all(Decimal(str(value)) % Decimal(str(step)) == 0 for step in wanted.multiples)
        )
    if isinstance(value, str):
        size = wanted.min_length, wanted.max_length
    elif isinstance(value, list):
        size = wanted.min_items, wanted.max_items
        if wanted.unique is not None:
            raise ConstraintError(wanted.unique, "`uniqueItems` cannot be enforced beside enumerated arrays")
    else:
        size = wanted.min_properties, wanted.max_properties
    return size[0] <= len(value) and (size[1] is None or len(value) <= size[1])
