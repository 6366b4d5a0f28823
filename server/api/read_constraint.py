"""The constraint that a request puts on its output, as the endpoints read it."""

from __future__ import annotations

from ..limits import LimitOptions
from ..structured.constraint import Constraint, constraint_of
from ..structured.errors import ConstraintError
from .errors import bad_request
from .protocol import GenerationRequest


def read_constraint(request: GenerationRequest, limits: LimitOptions) -> Constraint | None:
    """None if any text will do. Raises a 400 that names the field and the part of it that cannot be enforced."""
    try:
        return constraint_of(request, limits)
    except ConstraintError as error:
        raise bad_request(error.path, error.message) from None
