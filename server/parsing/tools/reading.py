"""How a parser reads text that comes in pieces: as a generator that waits where it needs more.

A format is then written as it would be for a whole text, and is indifferent to cuts by construction, as long as it
decides by these primitives only. None of them looks at a character more often than a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]  # yields wherever the text so far has been used up

SPACE = re.compile(r"[ \t\r\n]*")


class Marks:
    """Strings to look for. A lead in front of one is part of it: the line break before a marker, say.

    No mark may begin another or lie within another, except at its end.
    """

    def __init__(self, *marks: str, leads: tuple[str, ...] = ()) -> None:
        forms = {mark: mark for mark in marks} | {lead + mark: mark for lead in leads for mark in marks}
        self.mark_of = forms
        self.pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
        self._prefixes = frozenset(form[:length] for form in forms for length in range(1, len(form)))
        self._longest = max(map(len, self._prefixes), default=0)

    def held(self, text: str, at: int) -> int:
        """Where the longest end of `text[at:]` begins that may still become a mark; its length if none may."""
        for start in range(max(at, len(text) - self._longest), len(text)):
            if text[start:] in self._prefixes:
                return start
        return len(text)


class Reader:
    """The text of one answer. `record` collects what is read while it may still turn out to be content."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self.record: list[str] | None = None

    def more(self) -> Steps[bool]:
        """Waits for text beyond what there is; False when there will be none."""
        known = len(self.text) - self.at
        while not self.ended:
            yield
            if len(self.text) - self.at > known:
                return True
        return False

    def take(self, end: int) -> str:
        """Reads up to index `end` of the text."""
        piece = self.text[self.at : end]
        self.at = end
        if self.record is not None and piece:
            self.record.append(piece)
        return piece

    def peek(self) -> Steps[str]:
        """The next character, which stays unread; "" at the end."""
        if self.at < len(self.text) or (yield from self.more()):
            return self.text[self.at]
        return ""

    def take_while(self, run: re.Pattern[str]) -> Steps[str]:
        """Reads the longest run that `run`, the pattern of a character class with a star, matches here."""
        parts = []
        while True:
            match = run.match(self.text, self.at)
            parts.append(self.take(match.end() if match else self.at))
            if self.at < len(self.text) or not (yield from self.more()):
                return "".join(parts)

    def space(self) -> Steps[str]:
        """Reads white space, perhaps none."""
        return (yield from self.take_while(SPACE))

    def expect(self, *literals: str) -> Steps[str | None]:
        """Reads the first of these that stands here; None, and nothing is read, if none does."""
        while True:
            rest = self.text[self.at : self.at + max(map(len, literals))]
            undecided = False
            for literal in literals:
                if rest.startswith(literal):
                    self.take(self.at + len(literal))
                    return literal
                if literal.startswith(rest) and not self.ended:
                    undecided = True
                    break
            if not undecided:
                return None
            yield from self.more()

    def cut_off(self, *literals: str) -> bool:
        """Has the answer ended here, in the middle of one of these (or before its first character)?"""
        rest = self.text[self.at :]
        return self.ended and any(literal.startswith(rest) for literal in literals)

    def until(self, marks: Marks, emit: Callable[[str], None]) -> Steps[tuple[str, str] | None]:
        """Reads to the first mark and past it; what is before it goes to `emit` as soon as it is certain.

        Returns the mark and the form it had (with its lead), or None where the answer ends before one comes.
        """
        while True:
            match = marks.pattern.search(self.text, self.at)
            end = match.start() if match else marks.held(self.text, self.at)
            if end > self.at:
                emit(self.take(end))
            if match:
                form = self.take(match.end())
                return marks.mark_of[form], form
            if not (yield from self.more()):
                if self.at < len(self.text):
                    emit(self.take(len(self.text)))
                return None
