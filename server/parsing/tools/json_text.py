"""Where a JSON value ends, in text that comes in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NoReturn

import msgspec

from .reading import Reader, Steps
from .schema_types import type_of

STRING_RUN = re.compile(r'[^"\\]*')
STRICT_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]*')
BETWEEN = re.compile(r"[ \t\r\n,:0-9A-Za-z+\-.]*")
SCALAR = re.compile(r"[0-9A-Za-z+\-.]*")
CLOSER = {"{": "}", "[": "]"}


class JsonScanner:
    """Follows brackets and strings from a value's first character; it does not check commas, colons or literals.

    `over`: the value has ended, `well`: with its own last character, not because something impossible came.
    With `strict`, a control character in a string is impossible.
    """

    __slots__ = ("_escaped", "_run", "_stack", "in_string", "over", "scalar", "well")

    def __init__(self, *, strict: bool = False) -> None:
        self._stack: list[str] = []
        self._escaped = False
        self._run = STRICT_STRING_RUN if strict else STRING_RUN
        self.in_string = False
        self.scalar = False
        self.over = False
        self.well = False

    def feed(self, text: str, at: int) -> int:
        """Follows `text` from index `at`; returns the index to which it belongs to the value."""
        size = len(text)
        if at < size and not (self._stack or self.in_string or self.scalar):
            at = self._first(text, at)
        while at < size and not self.over:
            if self.in_string:
                at = self._string(text, at)
            elif self.scalar:
                at = _end(SCALAR, text, at)
                if at < size:
                    self._end(well=True)
            else:
                at = self._outside(text, _end(BETWEEN, text, at))
        return at

    def _first(self, text: str, at: int) -> int:
        char = text[at]
        if char in CLOSER:
            self._stack.append(CLOSER[char])
        elif char == '"':
            self.in_string = True
        elif SCALAR.fullmatch(char):
            self.scalar = True
        else:
            self._end(well=False)
            return at
        return at + 1

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        at = _end(self._run, text, at)
        if at == len(text):
            return at
        if text[at] == "\\":
            self._escaped = True
        elif text[at] == '"':
            self.in_string = False
            if not self._stack:
                self._end(well=True)
        else:
            self._end(well=False)
            return at
        return at + 1

    def _outside(self, text: str, at: int) -> int:
        if at == len(text):
            return at
        char = text[at]
        if char == '"':
            self.in_string = True
        elif char in CLOSER:
            self._stack.append(CLOSER[char])
        elif char == self._stack[-1]:
            self._stack.pop()
            if not self._stack:
                self._end(well=True)
        else:
            self._end(well=False)
            return at
        return at + 1

    def _end(self, *, well: bool) -> None:
        self.over = True
        self.well = well


def _end(run: re.Pattern[str], text: str, at: int) -> int:
    match = run.match(text, at)
    return match.end() if match else at


def read_value(reader: Reader, emit: Callable[[str], None], *, strict: bool = False) -> Steps[bool]:
    """Reads a JSON value that begins here and passes its text on, unchanged. False: it was cut off or malformed."""
    scanner = JsonScanner(strict=strict)
    while True:
        end = scanner.feed(reader.text, reader.at)
        if end > reader.at:
            emit(reader.take(end))
        if scanner.over:
            return scanner.well
        if not (yield from reader.more()):
            return scanner.scalar


def read_string(reader: Reader) -> Steps[str | None]:
    """Reads a JSON string and returns what it says; None if here is no whole, valid one."""
    if (yield from reader.peek()) != '"':
        return None
    parts: list[str] = []
    if not (yield from read_value(reader, parts.append, strict=True)):
        return None
    try:
        return msgspec.json.decode("".join(parts), type=str)
    except (msgspec.DecodeError, UnicodeError):
        return None


def json_type(text: str) -> str | None:
    """The type of a JSON text, however large its numbers are; None if it is no JSON."""
    try:
        return type_of(
            json.loads(text, parse_int=lambda _: 0, parse_float=lambda _: 0.5, parse_constant=_refuse)
        )
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def quoted(text: str) -> str:
    """The JSON string that says `text`."""
    return f'"{escaped(text)}"'


def escaped(text: str) -> str:
    """What stands between the quotation marks of `quoted`; pieces of a text can be escaped one by one."""
    return SPECIAL.sub(_escape, text)


SPECIAL = re.compile(r'["\\\x00-\x1f\ud800-\udfff]')
SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    return SHORT.get(char) or f"\\u{ord(char):04x}"
