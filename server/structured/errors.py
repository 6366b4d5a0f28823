"""Why a constraint on the output cannot be enforced."""

from __future__ import annotations


class ConstraintError(Exception):
    """`path` is the place in the request, such as `response_format.json_schema.schema.properties.a.pattern`."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class Unsatisfiable(ConstraintError):
    """Nothing at all satisfies this part of a schema."""
