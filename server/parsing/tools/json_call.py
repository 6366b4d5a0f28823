"""A call written as a JSON object: {"name": "f", "arguments": {...}}, its keys in any order."""

from __future__ import annotations

from collections.abc import Callable

from .calls import CallParser
from .json_text import read_string, read_value
from .reading import Steps

ARGUMENTS = ("arguments", "parameters")
OTHERS = ("type", "id")


def read_call(
    parser: CallParser, *, marked: bool = True, accept: Callable[[str], bool] = bool
) -> Steps[bool]:
    """Reads the object after its `{`. False if it is no call: `accept` says which names are one's.

    Unless it is `marked` as a call, an object is one only if it has arguments and no keys of other things.
    """
    name: str | None = None
    started = False
    arguments: list[str] | None = None  # those that came before the name
    while True:
        yield from parser.space()
        key = yield from read_string(parser)
        yield from parser.space()
        if key is None or (yield from parser.expect(":")) is None:
            return started
        yield from parser.space()
        if key == "name" and name is None:
            name = yield from read_string(parser)
            if name is None or not accept(name):
                return started
            if marked or arguments is not None:
                parser.start(name)
                started = True
                parser.arguments("".join(arguments or ()))
        elif key in ARGUMENTS and arguments is None:
            arguments = []
            if name is not None and not started:
                parser.start(name)
                started = True
            if not (yield from read_value(parser, parser.arguments if started else arguments.append)):
                return started
        elif not (marked or key in OTHERS) or not (yield from read_value(parser, _drop)):
            return started
        yield from parser.space()
        match (yield from parser.expect(",", "}")):
            case "}":
                if started and arguments is None:
                    parser.arguments("{}")
                return started
            case None:
                return started


def _drop(text: str) -> None:
    pass
