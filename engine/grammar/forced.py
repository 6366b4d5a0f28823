"""The tokens of text that a grammar leaves no choice about: drafts that are right unless the model spells it otherwise."""

from __future__ import annotations

from collections.abc import Sequence


class Spelling:
    """Cuts text into tokens, each as long as it can be. That is how most tokenizers cut most text; where it is not, a
    draft is wrong."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """`tokens[id]` is its text; those without any, and the later of two with the same one, are never used."""
        self._ids: dict[bytes, int] = {}
        for number, token in enumerate(tokens):
            if token:
                self._ids.setdefault(token, number)
        self._longest = max(map(len, self._ids), default=0)

    def tokens(self, text: bytes, most: int) -> list[int]:
        """At most `most` tokens from the start of `text`, as far as it can be spelt; not one that ends where the text
        does, since it may be part of a longer one with what comes after."""
        found: list[int] = []
        begin = 0
        while begin < len(text) and len(found) < most:
            for end in range(min(len(text), begin + self._longest), begin, -1):
                token = self._ids.get(text[begin:end])
                if token is not None:
                    break
            else:
                break
            if end == len(text):
                break
            found.append(token)
            begin = end
        return found
