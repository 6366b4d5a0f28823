"""One schema of what a conjunction without choices demands, in keywords that the grammar compiler enforces together."""

from __future__ import annotations

from typing import Any

from . import keywords
from .arrays import array_schema
from .builder import Builder
from .conjunction import Conjunction
from .errors import Unsatisfiable
from .members import object_schema
from .numbers import integer_schema, number_schema
from .strings import string_schema
from .values import chosen_values

ALL_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def written(wanted: Conjunction, builder: Builder) -> dict[str, Any]:
    """Raises `Unsatisfiable` if no value meets it, `ConstraintError` if it cannot be enforced."""
    if wanted.values is not None:
        return {"enum": chosen_values(wanted, builder)}
    types = wanted.types
    if types is None:
        spoken_of = {keywords.SPEAKS_OF[keyword] for keyword in wanted.said if keyword in keywords.SPEAKS_OF}
        if wanted.said & keywords.STRING == {"format"} and not wanted.formats:
            spoken_of.discard("string")  # a format that only hints, or one of numbers
        if not spoken_of:
            return {}
        types = frozenset(spoken_of)
    schemas: list[dict[str, Any]] = []
    failure: Unsatisfiable | None = None
    for name in ALL_TYPES:
        if name in types:
            try:
                schemas.append(of_type(name, wanted, builder))
            except Unsatisfiable as error:
                failure = error
    if not schemas:
        assert failure is not None
        raise failure
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def of_type(name: str, wanted: Conjunction, builder: Builder) -> dict[str, Any]:
    match name:
        case "object":
            return object_schema(wanted, builder)
        case "array":
            return array_schema(wanted, builder)
        case "string":
            return string_schema(wanted, builder)
        case "number":
            return number_schema(wanted)
        case "integer":
            return integer_schema(wanted)
    return {"type": name}
