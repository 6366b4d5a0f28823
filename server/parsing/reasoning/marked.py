"""Thinking between two markers at the start of an answer: what most reasoning formats are.

Line ends beside a marker belong to it, as in the templates that write `<think>\\n…\\n</think>\\n\\n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import ClassVar

from ..events import Content, Event, Reasoning
from ..interface import ReasoningFormat, ReasoningParser, TagFormat
from ..markers import first_of, undecided_from
from ..tags import any_text, without
from ..tools.grammar import optional, sequence, text

LINE_END = "\n"
LINE_ENDS: TagFormat = {"type": "regex", "pattern": r"\n{0,2}"}


class State(Enum):
    """Where the text so far ends."""

    UNDECIDED = auto()  # nothing but white space yet, or the beginning of the opening marker
    OPENED = auto()  # thinking, no text of it yet
    THINKING = auto()
    CLOSED = auto()  # behind the closing marker, no text yet
    ANSWER = auto()


class MarkedThinking(ReasoningFormat):
    """Thinking between `opening` and `closing`.

    The prompt may have opened it, or opened and closed it (thinking is switched off). If it did neither, the model
    opens it or answers at once; but if `implied`, it thinks even without an opening. Text of `ends_with` ends the
    thinking too, and is the beginning of the answer.
    """

    opening: ClassVar[str] = "<think>"
    closing: ClassVar[str] = "</think>"
    markers: tuple[str, ...] = (opening, closing)
    implied: ClassVar[bool] = False
    ends_with: ClassVar[tuple[str, ...]] = ()

    def start(self, prompt: str) -> State:
        """Where the prompt leaves off."""
        tail = prompt.rstrip()
        if tail.endswith(self.closing):
            return State.ANSWER
        if tail.endswith(self.opening):
            return State.OPENED
        return State.OPENED if self.implied else State.UNDECIDED

    def parser(self, prompt: str) -> ReasoningParser:
        return MarkedParser(self.start(prompt), self.opening, self.closing, self.ends_with)

    def tag(self, prompt: str, answer: TagFormat, *, budget: int | None) -> TagFormat:
        start = self.start(prompt)
        if start is State.ANSWER:
            return answer
        if budget == 0:
            marks = (
                self.closing
                if prompt.rstrip().endswith(self.opening)
                else self.opening + "\n\n" + self.closing
            )
            return sequence(text(marks + "\n\n"), answer)
        thinking = [any_text([self.closing, *self.ends_with], budget), text(self.closing), LINE_ENDS]
        if start is State.UNDECIDED:
            return sequence(
                optional(sequence(text(self.opening), *thinking)), without(answer, [self.opening])
            )
        return sequence(*thinking, answer)


class MarkedParser:
    """One answer of a `MarkedThinking`."""

    def __init__(self, start: State, opening: str, closing: str, ends_with: Sequence[str]) -> None:
        self._state = start
        self._opening = opening
        self._closing = closing
        self._ends = (closing, *ends_with)
        self._held = ""
        self._may_open = True  # an opening that the model repeats behind the prompt's

    @property
    def thinking(self) -> bool:
        return self._state in (State.OPENED, State.THINKING)

    def push(self, text: str) -> list[Event]:
        if self._state is State.ANSWER:
            return [Content(text)] if text else []
        self._held += text
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> list[Event]:
        held, self._held = self._held, ""
        if not held or self._state is State.CLOSED:
            return []
        if self._state is State.OPENED:
            held = held.lstrip(LINE_END)
            return [Reasoning(held)] if held else []
        return [Reasoning(held) if self._state is State.THINKING else Content(held)]

    def _step(self, events: list[Event]) -> bool:
        """One transition of what is held; False if more text is needed."""
        match self._state:
            case State.UNDECIDED:
                return self._undecided(events)
            case State.OPENED:
                return self._opened()
            case State.THINKING:
                return self._thinking(events)
            case State.CLOSED:
                self._held = self._held.lstrip(LINE_END)
                if self._held:
                    self._state = State.ANSWER
                return bool(self._held)
            case State.ANSWER:
                if self._held:
                    events.append(Content(self._held))
                    self._held = ""
                return False

    def _undecided(self, events: list[Event]) -> bool:
        begun = self._held.lstrip()
        if begun.startswith(self._opening):
            self._held = begun.removeprefix(self._opening)
            self._may_open = False
            self._state = State.OPENED
            return True
        if self._opening.startswith(begun):
            return False
        self._state = State.ANSWER
        return True

    def _opened(self) -> bool:
        begun = self._held.lstrip()
        if self._may_open and begun.startswith(self._opening):
            self._held = begun.removeprefix(self._opening)
            self._may_open = False
            return True
        if self._may_open and self._opening.startswith(begun):
            return False
        self._held = self._held.lstrip(LINE_END)
        if self._held:
            self._state = State.THINKING
        return bool(self._held)

    def _thinking(self, events: list[Event]) -> bool:
        end, marker = first_of(self._held, self._ends)
        if marker is None:
            keep = undecided_from(self._held, self._ends)
            sure = self._held[:keep].rstrip(LINE_END)
            if sure:
                events.append(Reasoning(sure))
            self._held = self._held[len(sure) :]
            return False
        thought = self._held[:end].rstrip(LINE_END)
        if thought:
            events.append(Reasoning(thought))
        if marker == self._closing:
            self._held = self._held[end + len(marker) :]
            self._state = State.CLOSED
        else:
            self._held = self._held[end:]
            self._state = State.ANSWER
        return True
