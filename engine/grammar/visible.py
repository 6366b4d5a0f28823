"""Which special tokens a grammar may use: those that it names; the others are no part of any text.

xgrammar takes every token for the text it is spelled with. But special tokens are left out of a reply, so a string
that may hold any characters could be filled with them and be empty to whoever reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from ...scheduler.arrays import Int32
from ...scheduler.messages import GrammarSpec

# Parts of a structural tag that describe text which the user will read.
TEXT_FIELDS = frozenset({"json_schema", "pattern", "grammar", "schema"})
TOKEN_FIELDS = frozenset({"token", "trigger_tokens", "rules"})  # parts in which a number is a token's id


class VisibleTokens:
    """Bit masks over the vocabulary, int32 (words,): bit t % 32 of word t // 32 is set if token t is part of the text."""

    def __init__(self, special: Mapping[str, int], others: Iterable[int], vocab_size: int) -> None:
        """`others` are hidden too: what xgrammar takes for the end where a request has no end of its own, and ids
        without any text."""
        self._special = special
        self._vocab_size = vocab_size
        self._hidden = frozenset(special.values()) | frozenset(others)
        self._all_hidden = self._bits(self._hidden)

    def of(self, spec: GrammarSpec) -> Int32:
        """Everything but the special tokens that `spec` does not name; not to be written to."""
        named = self._hidden & frozenset(self._named(spec))
        return self._bits(self._hidden - named) if named else self._all_hidden

    def _named(self, spec: GrammarSpec) -> Iterator[int]:
        if spec.kind != "structural_tag":
            return
        for word in words(msgspec.json.decode(spec.text)):
            if isinstance(word, int):
                yield word
            else:
                yield from (token for name, token in self._special.items() if name in word)

    def _bits(self, hidden: Iterable[int]) -> Int32:
        visible = np.zeros(-(-self._vocab_size // 32) * 32, np.bool_)
        visible[: self._vocab_size] = True
        visible[list(hidden)] = False
        return np.packbits(visible, bitorder="little").view(np.int32)


def words(node: Any, field: str = "") -> Iterator[str | int]:
    """The texts and token ids in a structural tag, but for what describes the user's text; `field` is what holds it."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name not in TEXT_FIELDS:
                yield from words(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from words(value, field)
    elif isinstance(node, str) or (isinstance(node, int) and field in TOKEN_FIELDS):
        yield node
