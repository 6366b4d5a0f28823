"""What the writers of single types need of the rewriter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from ..limits import LimitOptions
from .conjunction import Conjunction, Located
from .regex import Matcher


class Builder(Protocol):
    """One rewriting."""

    limits: LimitOptions
    matcher: Matcher

    def build(self, parts: tuple[Located, ...]) -> dict[str, Any]:
        """The schema of what satisfies all of `parts`. Raises `Unsatisfiable` if nothing does."""

    def together(self, parts: Iterable[Located]) -> Conjunction:
        """What `parts` demand, for a look at it."""
