"""Which values and phrasings belong to training and which are held out for the score?

Every random value that a kind of question draws (a name, a pair of numbers, a list) is put on one side by
a hash of its text, every phrasing by the list that it stands in. A held-out question therefore shares
neither with the training text; closed tables (capitals, times tables) are held out by phrasing alone.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_EVERY = 8
CLOSED_BELOW = 30
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def is_held_out(key: object) -> bool:
    """Whether the value whose text is `key` is kept away from training (one in `HELD_OUT_EVERY`)."""
    return zlib.crc32(str(key).encode()) % HELD_OUT_EVERY == 0


class Source:
    """A seeded source of values and phrasings of one split."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def draw(self, make: Callable[[], T]) -> T:
        """The first value of `make` that belongs to this split."""
        while True:
            value = make()
            if is_held_out(value) == self.held_out:
                return value

    def one(self, values: Sequence[T]) -> T:
        """One value of an open list, restricted to this split; short lists are closed and serve both."""
        if len(values) < CLOSED_BELOW:
            return self.rng.choice(values)
        return self.draw(lambda: self.rng.choice(values))

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """`count` distinct values of `one`."""
        found: list[T] = []
        while len(found) < count:
            value = self.one(values)
            if value not in found:
                found.append(value)
        return found

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def phrase(self, train: Sequence[str], held_out: Sequence[str], **values: object) -> str:
        """One phrasing of this split with `[a|b]` choices taken and `{name}` slots filled."""
        return self.fill(self.rng.choice(held_out if self.held_out else train), **values)

    def fill(self, template: str, **values: object) -> str:
        """`template` with its `[a|b]` choices taken at random and its `{name}` slots filled."""
        text = template
        while match := _CHOICE.search(text):
            choice = self.rng.choice(match.group(1).split("|"))
            text = text[: match.start()] + choice + text[match.end() :]
        for name, value in values.items():
            text = text.replace("{" + name + "}", str(value))
        return text
