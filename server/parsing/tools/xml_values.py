"""Parameters written as bare text between tags, turned into JSON by the types that the tool's schema leaves open."""

from __future__ import annotations

from .calls import CallParser
from .json_text import JsonScanner, escaped, json_type, quoted
from .python_literal import as_json
from .reading import Marks, Steps
from .schema_types import ANY, TEXT, Types


def read_text(parser: CallParser, ends: Marks) -> Steps[bool]:
    """A string, streamed up to the end tag. False: the answer ended first."""
    parser.arguments('"')
    if (yield from parser.until(ends, lambda piece: parser.arguments(escaped(piece)))) is None:
        return False
    parser.arguments('"')
    return True


def read_typed(parser: CallParser, ends: Marks, types: Types) -> Steps[bool]:
    """A value of some other type, or one that may be a string too: read to its end tag, then written as JSON.

    An end tag inside a string of a JSON value is part of the string; but if that string never ends, it was the end.
    """
    parts: list[str] = []
    scanner: JsonScanner | None = None
    size = followed = 0  # characters in `parts`; how many parts the scanner has seen
    doubtful: tuple[int, int] | None = None  # where the first end tag within a string began and ended

    while (found := (yield from parser.until(ends, parts.append))) is not None:
        if scanner is None and not parser.lenient:
            head = "".join(parts).lstrip()
            if head and head[0] in openers(types):
                parts, scanner = [head], JsonScanner()
        if scanner is not None:
            for part in parts[followed:]:
                size += len(part)
                scanner.feed(part, 0)
            followed = len(parts)
            if scanner.in_string and not scanner.over:
                parts.append(found[1])
                doubtful = doubtful or (size, size + len(found[1]))
                continue
        parser.arguments(to_json("".join(parts), types))
        return True

    text = "".join(parts)
    if doubtful is None:
        parser.arguments(beginning(text, types))
        return False
    parser.arguments(to_json(text[: doubtful[0]], types))
    parser.read_again(text[doubtful[1] :])
    return True


def openers(types: Types) -> str:
    """The characters with which a value of these types begins that is JSON and may contain strings."""
    found = "{" * ("object" in types) + "[" * ("array" in types)
    return found + '"' * ("string" not in types or types == ANY)


def to_json(text: str, types: Types) -> str:
    """The JSON of a whole value. What fits no type but a string's is a string, and so is what is no JSON."""
    value = text.strip()
    kind = json_type(value)
    bare = "string" in types and types != ANY  # a quotation mark is part of the string then
    if kind is None and (not types & TEXT or value[:1] in ("{", "[")):
        written = as_json(value)
        if written is not None:
            value, kind = written, json_type(written)
    if kind is not None and (kind in types or not types & TEXT) and not (bare and kind == "string"):
        return value
    return quoted(text)


def beginning(text: str, types: Types) -> str:
    """The JSON of a value that was cut off."""
    value = text.lstrip()
    if types & TEXT and value[:1] not in ("{", "["):
        return '"' + escaped(text)
    return value
