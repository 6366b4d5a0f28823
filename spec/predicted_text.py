"""A text that a user expects as the answer, followed while the answer is written (OpenAI's Predicted Outputs).

The same as kernels/cpu/predicted_text.h, step for step, which says how it works; for machines without a compiler.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

CONTEXT = 16  # tokens of the answer that a place is looked for with
SURE = 3  # tokens in a row after which a place is believed
PLACES = 2048  # looked at on each side of the sure place, nearest first
FROM_START = 1 << 20  # `matched` of an answer that has said nothing else yet


class PredictedText:
    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._places: dict[int, list[int]] = {}
        for i, token in enumerate(self._tokens):
            self._places.setdefault(token, []).append(i)
        self._at = 0
        self._sure = 0
        self._guess = False
        self.matched = FROM_START

    @property
    def is_sure(self) -> bool:
        return self.matched >= SURE

    def follow(self, recent: Sequence[int]) -> bool:
        """Take in the newest token of the answer, the last of `recent`; whether it was predicted."""
        expected = self._tokens[self._at : self._at + 1] if self.matched else []
        predicted = expected == [recent[-1]]
        if predicted:
            self._at += 1
            self.matched += 1
        else:
            was_sure = self.is_sure
            self._find(recent[-CONTEXT:])
            # Nothing fits, right after the first token that differs: it may stand in the place of another one.
            self._guess = self.matched == 0 and was_sure
            if self._guess:
                self._at = self._sure + 1
        if self.is_sure:
            self._sure = self._at
        return predicted

    def draft(self, most: int) -> list[int]:
        """What is predicted next, at most `most` tokens."""
        if not self.matched and not self._guess:
            return []
        return self._tokens[self._at : self._at + most]

    def _find(self, recent: Sequence[int]) -> None:
        places = self._places.get(recent[-1], [])
        middle = bisect_left(places, self._sure)
        self.matched = 0
        for i in [*places[middle : middle + PLACES], *reversed(places[max(0, middle - PLACES) : middle])]:
            length = 0
            while length < min(len(recent), i + 1) and self._tokens[i - length] == recent[-1 - length]:
                length += 1
            if length > self.matched:
                self.matched, self._at = length, i + 1
            if length == len(recent):
                break
