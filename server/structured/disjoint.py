"""Can no value satisfy two options of a `oneOf`? Then it is an `anyOf`, and only then can it be enforced."""

from __future__ import annotations

from collections.abc import Iterable

from .builder import Builder
from .conjunction import Choice, Conjunction, canonical, has_type
from .errors import ConstraintError

KINDS = ("null", "boolean", "string", "number", "array", "object")


def check_exclusive(choice: Choice, options: list[Conjunction], builder: Builder) -> None:
    """Raises `ConstraintError` unless it can be seen; the work is that of reading each option once."""
    for kind in KINDS:
        rivals = [option for option in options if may_be(option, kind)]
        if len(rivals) < 2 or distinct(values_of(option, kind) for option in rivals):
            continue
        if kind != "object" or not told_apart(rivals, builder):
            raise ConstraintError(
                choice.path,
                f"two options may both hold for one {kind}, and `oneOf` forbids that: use anyOf, or give the options "
                "different types, or a required property whose `const` differs",
            )


def may_be(option: Conjunction, kind: str) -> bool:
    if option.types is not None and not option.types & ({kind, "integer"} if kind == "number" else {kind}):
        return False
    return option.values is None or bool(values_of(option, kind))


def values_of(option: Conjunction, kind: str) -> list[str] | None:
    """The values of this kind that it enumerates; None if it does not."""
    if option.values is None:
        return [kind] if kind == "null" else None
    return [canonical(value) for value in option.values if has_type(value, frozenset({kind}))]


def distinct(each: Iterable[list[str] | None]) -> bool:
    """No value is in two of the lists, and all of them are known."""
    seen: set[str] = set()
    for values in each:
        if values is None or not seen.isdisjoint(values):
            return False
        seen.update(values)
    return True


def told_apart(options: list[Conjunction], builder: Builder) -> bool:
    """Is there a property that all require, with other values in each?"""
    return any(
        distinct(enumerated(option, name, builder) for option in options)
        for name in options[0].required
        if all(name in option.required for option in options)
    )


def enumerated(option: Conjunction, name: str, builder: Builder) -> list[str] | None:
    """The values that a property may have, if they are enumerated."""
    values = builder.together(
        members.properties[name] for members in option.members if name in members.properties
    ).values
    return None if values is None else [canonical(value) for value in values]
