"""A text as a suffix automaton that grows by a token at a time and knows what usually follows each of its parts.

The same as kernels/cpu/suffix_automaton.h, state for state, which says how it works; for machines without a compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CLASSES = 64
NONE = -1


class Place(NamedTuple):
    """A part of the text: the last `matched` tokens of what `state` stands for."""

    state: int = 0
    matched: int = 0


class SuffixAutomaton:
    """Source: Blumer et al., The smallest automaton recognizing the subwords of a text, TCS 40, 1985."""

    def __init__(self) -> None:
        self._length = [0]
        self._link = [NONE]
        self._token = [NONE]
        self._count = [0]
        self._best = [NONE]
        self._edges: list[dict[int, int]] = [{}]  # token -> state
        self._last = 0

    def __len__(self) -> int:
        return self._length[self._last]

    def append(self, token: int) -> None:
        """Take in the next token; those below 0 end a text, nothing is drafted beyond them."""
        before = p = self._last
        now = self._add(self._length[before] + 1, 0, token, 1, NONE, {})
        while p != NONE and token not in self._edges[p]:
            self._edges[p][token] = now
            p = self._link[p]
        if p != NONE:
            q = self._edges[p][token]
            if self._length[q] == self._length[p] + 1:
                self._link[now] = q
            else:
                clone = self._add(
                    self._length[p] + 1,
                    self._link[q],
                    token,
                    self._count[q],
                    self._best[q],
                    dict(self._edges[q]),
                )
                while p != NONE and self._edges[p].get(token) == q:
                    self._edges[p][token] = clone
                    if self._best[p] == q:
                        self._best[p] = clone
                    p = self._link[p]
                self._link[q] = self._link[now] = clone
        self._last = now
        self._update(before)

    def _add(self, length: int, link: int, token: int, count: int, best: int, edges: dict[int, int]) -> int:
        self._length.append(length)
        self._link.append(link)
        self._token.append(token)
        self._count.append(count)
        self._best.append(best)
        self._edges.append(edges)
        return len(self._length) - 1

    def _update(self, before: int) -> None:
        """The text ended in `before` and got a token: what follows its suffixes, how often what it ends in came."""
        length, link, count, best = self._length, self._link, self._count, self._best
        t, p = self._last, before
        for _ in range(CLASSES):
            if p <= 0:
                break
            while length[link[t]] > length[p]:
                t = link[t]
                count[t] += 1
            if best[p] == NONE or count[t] >= count[best[p]]:
                best[p] = t
            p = link[p]

    def suffix(self, most: int) -> Place:
        """The longest suffix of the text, of at most `most` tokens, that came before."""
        state = self._link[self._last]
        if state == NONE:
            return Place()
        for _ in range(CLASSES):
            shorter = self._link[state]
            if self._length[state] <= most or self._length[shorter] < most:
                break
            state = shorter
        return Place(state, min(self._length[state], most))

    def find(self, tokens: Sequence[int]) -> Place:
        """The longest suffix of `tokens` that is part of the text."""
        state = matched = 0
        for token in tokens:
            while token not in self._edges[state] and state != 0:
                state = self._link[state]
                matched = self._length[state]
            if token in self._edges[state]:
                state = self._edges[state][token]
                matched += 1
        return Place(state, matched)

    def settle(self, place: Place) -> Place:
        """The longest suffix of `place` that something follows."""
        state, matched = place
        while state != 0 and self._best[state] == NONE:
            state = self._link[state]
            matched = self._length[state]
        return Place(state, matched)

    def follow(self, place: Place, least: int, most: int) -> list[int]:
        """What most often follows `place`, then what follows that, while the context has `least` (> 0) tokens."""
        tokens: list[int] = []
        while len(tokens) < most:
            place = self.settle(place)
            if place.matched < least:
                break
            target = self._best[place.state]
            if self._token[target] < 0:
                break
            tokens.append(self._token[target])
            place = Place(target, place.matched + 1)
        return tokens
