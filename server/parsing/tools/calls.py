"""What the parsers of all tool-call formats have in common: content between calls, and calls that are none after all.

A marker opens an attempt. From there on everything read is recorded until the call's name is certain; if the text
then does not follow the format, what was recorded is content.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..events import CallArguments, CallStart, Content, Event
from ..interface import ToolSchema
from .reading import Marks, Reader, Steps


class CallParser(Reader, ABC):
    """Takes one answer apart; a format says what opens a call and how to read one.

    White space alone, before the first call, between calls and after the last one, belongs to the format.
    """

    opening: tuple[str, ...]  # what may open a call
    reopening: tuple[str, ...] = ()  # what may also open one once there was a call
    closing: tuple[str, ...] = ()  # what ends calls, and is left out once there was one
    leads: tuple[str, ...] = ()  # what the format puts between text and a call

    def __init__(self, tools: list[ToolSchema]) -> None:
        super().__init__()
        self.tools = {tool.name: tool for tool in tools}
        self.calls = 0
        self.said = False  # was there text yet, outside of calls?
        self.lenient = False  # after the text ended in what could not be right, and part of it is read again
        self._events: list[Event] = []
        self._quiet = True  # only white space since the answer began, or since a call
        self._blank: list[str] = []  # that white space
        self._first = Marks(*self.opening, leads=self.leads)
        self._later = Marks(*self.opening, *self.reopening, *self.closing, leads=self.leads)
        self._steps = self._run()
        next(self._steps)

    @abstractmethod
    def call(self, mark: str) -> Steps[bool]:
        """Reads a call (or several) after the mark that opened it; False if it is none and none was started."""

    def push(self, text: str) -> list[Event]:
        self.text = self.text[self.at :] + text
        self.at = 0
        next(self._steps)
        return self._taken()

    def finish(self) -> list[Event]:
        self.ended = True
        next(self._steps, None)
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def start(self, name: str, call_id: str | None = None) -> None:
        """The call is certain: nothing of it can become content any more."""
        self.record = None
        self._quiet = True
        self._events.append(CallStart(self.calls, name, call_id))
        self.calls += 1

    def arguments(self, text: str) -> None:
        if text:
            self._events.append(CallArguments(self.calls - 1, text))

    def content(self, text: str) -> None:
        if text:
            self.said = True
            self._events.append(Content(text))

    def read_again(self, text: str) -> None:
        """Puts text back that was taken for something else until the answer ended; not twice for the same text."""
        assert self.ended
        assert not self.lenient
        self.lenient = True
        self.text = text + self.text[self.at :]
        self.at = 0

    def attempt(self) -> None:
        """What is read from here on is content, unless a call is started or the attempt kept."""
        self.record = []

    def keep(self) -> None:
        """What was read since `attempt` belongs to the format."""
        self.record = None

    def give_up(self) -> None:
        """What was read since `attempt` is content."""
        record, self.record = self.record, None
        if record:
            self._say("".join(record))

    def _run(self) -> Steps[None]:
        yield
        while True:
            found = yield from self.until(self._later if self.calls else self._first, self._say)
            if found is None:
                if not self.calls:
                    self.content("".join(self._blank))
                return
            mark, form = found
            blank, self._blank = self._blank, []
            if mark in self.closing:
                self._quiet = True
                continue
            self.record = [*blank, form]
            if (yield from self.call(mark)):
                self._quiet = True
            else:
                self.give_up()

    def _say(self, text: str) -> None:
        """Content between calls; white space waits for text."""
        if self._quiet:
            self._blank.append(text)
            if text.isspace():
                return
            text = "".join(self._blank)
            self._blank.clear()
            self._quiet = False
        self.content(text)
