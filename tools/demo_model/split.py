"""Which values and phrasings belong to training and which are held out for the score?

Every random value that a kind of question draws (a name, a pair of numbers, a list) is put on one side by
a hash of its text, every phrasing by the list that it stands in. A held-out question therefore shares
neither with the training text; closed tables (capitals, times tables) are held out by
phrasing alone, and both splits are written in the same common words.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_EVERY = 8
LOOSENED_SHARE = 0.35
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, which spaces separate."""
    return tuple(text.split())


_SMALL_WORDS = words(
    "what what's is the a please tell give show know want need would will could can do does this that "
    "these it of for so now just here which be has have really exactly again right simply once get let "
    "say see then there and with out by as go if one was"
)


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
        """One value of an open list such as names, restricted to this split."""
        return self.draw(lambda: self.rng.choice(values))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def phrase(self, train: Sequence[str], held_out: Sequence[str], **values: object) -> str:
        """One phrasing of this split with `[a|b]` choices taken and `{name}` slots filled."""
        if self.held_out:
            return self.fill(self.rng.choice(held_out), **values)
        template = self._choose(self.rng.choice(train))
        return self.fill(self._loosen(template) if self.chance(LOOSENED_SHARE) else template, **values)

    def _choose(self, template: str) -> str:
        text = template
        while match := _CHOICE.search(text):
            choice = self.rng.choice(match.group(1).split("|"))
            text = text[: match.start()] + choice + text[match.end() :]
        return text

    def _loosen(self, template: str) -> str:
        """`template` with some of its small words dropped, swapped or added.

        The kinds know a dozen phrasings each; this keeps the model from reading them word by word.
        """
        kept: list[str] = []
        for word in template.split(" "):
            if self.chance(0.08):
                kept.append(self.rng.choice(_SMALL_WORDS))
            if word.lower() not in _SMALL_WORDS or (pick := self.rng.random()) > 0.3:
                kept.append(word)
            elif pick > 0.18:
                kept.append(self.rng.choice(_SMALL_WORDS))
        text = " ".join(kept) if kept else template
        return text[0].upper() + text[1:] if template[0].isupper() else text

    def fill(self, template: str, **values: object) -> str:
        """`template` with its `[a|b]` choices taken at random and its `{name}` slots filled."""
        text = self._choose(template)
        for name, value in values.items():
            text = text.replace("{" + name + "}", str(value))
        return text
