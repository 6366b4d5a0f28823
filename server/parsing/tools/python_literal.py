"""Python literals, as some models write arguments, turned into JSON while they are read."""

from __future__ import annotations

import re
from collections.abc import Callable

from .json_text import escaped, json_type
from .reading import Reader, Steps

WORD = re.compile(r"[0-9A-Za-z_+\-.]*")
HEX = re.compile(r"[0-9A-Fa-f]*")
JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
PYTHON_NUMBER = re.compile(
    r"[+-]?(?:[0-9][0-9_]{0,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,3})?"
)
WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
PLAIN = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
ESCAPES = {
    "n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0",
    "\\": "\\", "'": "'", '"': '"', "/": "/", "\n": "",
}  # fmt: skip
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
CLOSER = {"[": "]", "{": "}"}


def read_literal(reader: Reader, emit: Callable[[str], None]) -> Steps[bool]:
    """Reads a literal that begins here (strings, numbers, names of constants, lists, dicts) and passes on its JSON.

    Strings stream. JSON is read as what it says: its constants and the escapes that Python lacks are understood.
    False: it was cut off or malformed; what was passed on stands.
    """
    closers: list[str] = []
    fresh = False  # directly after an opening bracket
    while True:
        yield from reader.space()
        closer = closers[-1] if closers else ""
        if fresh and closer and (yield from reader.expect(closer)):
            emit(closer)
            closers.pop()
        else:
            if closer == "}" and not (yield from read_key(reader, emit)):
                return False
            opened = yield from _value(reader, emit)
            if opened is None:
                return False
            fresh = bool(opened)
            if fresh:
                closers.append(opened)
                continue
        fresh = False
        while closers:
            yield from reader.space()
            if (yield from reader.expect(",")):
                yield from reader.space()
                if (yield from reader.peek()) != closers[-1]:
                    emit(", ")
                    break
            if not (yield from reader.expect(closers[-1])):
                return False
            emit(closers.pop())
        else:
            return True


def read_key(reader: Reader, emit: Callable[[str], None]) -> Steps[bool]:
    """Reads a dict's key and the colon after it, and passes on their JSON."""
    if not (yield from _string(reader, emit)):
        return False
    yield from reader.space()
    if not (yield from reader.expect(":")):
        return False
    emit(": ")
    yield from reader.space()
    return True


def _value(reader: Reader, emit: Callable[[str], None]) -> Steps[str | None]:
    """Reads a scalar ("") or an opening bracket (its closer); None if here is neither."""
    char = yield from reader.peek()
    if char in PLAIN:
        return "" if (yield from _string(reader, emit)) else None
    if char in CLOSER:
        emit(reader.take(reader.at + 1))
        return CLOSER[char]
    word = yield from reader.take_while(WORD)
    written = WORDS.get(word) or number(word)
    if written is None:
        return None
    emit(written)
    return ""


def number(word: str) -> str | None:
    """A number of Python's as JSON; None if it is none, or none that JSON can write."""
    if JSON_NUMBER.fullmatch(word):
        return word
    if not PYTHON_NUMBER.fullmatch(word) or word.endswith("_"):
        return None
    word = word.replace("_", "")
    if word.lstrip("+-").isdigit():
        return str(int(word))
    value = float(word)
    return repr(value) if abs(value) != float("inf") else None


def _string(reader: Reader, emit: Callable[[str], None]) -> Steps[bool]:
    quote = yield from reader.expect("'''", '"""', "'", '"')
    if quote is None:
        return False
    emit('"')
    while True:
        emit(escaped((yield from reader.take_while(PLAIN[quote[0]]))))
        if (yield from reader.expect(quote)):
            emit('"')
            return True
        char = yield from reader.peek()
        if not char:
            return False
        reader.take(reader.at + 1)
        if char != "\\":
            emit(escaped(char))
            continue
        char = yield from reader.peek()
        if not char:
            return False
        reader.take(reader.at + 1)
        emit((yield from _escape(reader, char)))


def _escape(reader: Reader, char: str) -> Steps[str]:
    """The JSON of an escape whose backslash and next character have been read."""
    if char not in HEX_DIGITS:
        return escaped(ESCAPES.get(char, "\\" + char))
    digits = ""
    while len(digits) < HEX_DIGITS[char]:
        digit = yield from reader.peek()
        if not digit or not HEX.fullmatch(digit):
            return escaped("\\" + char + digits)
        digits += reader.take(reader.at + 1)
    if char == "u":
        return "\\u" + digits  # JSON's own escape, which may be half of a pair
    code = int(digits, 16)
    return escaped(chr(code)) if code <= 0x10FFFF else escaped("\\U" + digits)


def as_json(text: str) -> str | None:
    """The JSON of a whole Python literal; None if `text` is none."""
    reader = Reader()
    reader.text, reader.ended = text, True
    parts: list[str] = []
    steps = read_literal(reader, parts.append)
    try:
        next(steps)
    except StopIteration as stop:
        if stop.value and not text[reader.at :].strip():
            written = "".join(parts)
            return written if json_type(written) else None
    return None
