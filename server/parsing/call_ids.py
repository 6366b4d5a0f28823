"""The ids of tool calls that bring none of their own."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass

ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class CallIds:
    """What ids look like: `prefix`, then `length` random letters and digits."""

    prefix: str = "call_"
    length: int = 24

    def new(self) -> str:
        return self.prefix + "".join(secrets.choice(ALPHABET) for _ in range(self.length))


OPENAI = CallIds()
