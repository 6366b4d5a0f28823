"""Llama 4 and others that write calls as a Python list: [f(a=1), g(b="x")]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...structured import char_sets
from ..interface import Parser, TagFormat, ToolFormat, ToolSchema
from . import grammar
from .calls import CallParser
from .evidence import speaks_for
from .json_text import quoted
from .object_shapes import Parameter, Shape, shapes_of
from .python_literal import read_key, read_literal
from .reading import Steps

BEGIN, END = "<|python_start|>", "<|python_end|>"
NAME = re.compile(r"[A-Za-z0-9_.\-]*")
KEYWORD = re.compile(r"[^\s=(),*\[\]{}\"']*")


class PythonicParser(CallParser):
    """A list is one of calls if the answer begins with it, or a marker stands before it."""

    opening = (BEGIN, "[")
    closing = (END,)

    def call(self, mark: str) -> Steps[bool]:
        if mark == BEGIN:
            yield from self.space()
            if not (yield from self.expect("[")):
                return False
        elif self.said or self.calls:
            return False
        some = False
        while True:
            yield from self.space()
            if not (yield from self._one()):
                if some:
                    self.give_up()
                return some
            some = True
            self.attempt()
            yield from self.space()
            match (yield from self.expect(",", "]")):
                case "]":
                    self.keep()
                    return True
                case None:
                    self.give_up()
                    return True

    def _one(self) -> Steps[bool]:
        """Reads name(key=value, **{"other key": value}, ...); False if it is none and none was started."""
        name = yield from self.take_while(NAME)
        if not name or not (yield from self.expect("(")):
            return False
        separator = "{"
        started = False
        while True:
            yield from self.space()
            if (yield from self.expect(")")):
                if not started:
                    self.start(name)
                self.keep()
                self.arguments("{}" if separator == "{" else "}")
                return True
            members = bool((yield from self.expect("**")))
            key = "" if members else (yield from self.take_while(KEYWORD))
            yield from self.space()
            if not (yield from self.expect("{") if members else self._equals(key)):
                return started and self._broken(separator)
            if not started:
                self.start(name)
                started = True
            self.keep()
            if members:
                well, separator = yield from self._members(separator)
            else:
                self.arguments(f"{separator}{quoted(key)}: ")
                separator = ", "
                yield from self.space()
                well = yield from read_literal(self, self.arguments)
            if not well:
                return True
            self.attempt()
            yield from self.space()
            if not (yield from self.expect(",")) and (yield from self.peek()) != ")":
                return self._broken(separator)

    def _equals(self, key: str) -> Steps[bool]:
        return bool(key) and (yield from self.expect("==", "=")) == "="

    def _members(self, separator: str) -> Steps[tuple[bool, str]]:
        """Reads the members of a dict up to its end; what separates the next one, and False if there is no end."""
        while True:
            yield from self.space()
            if (yield from self.expect("}")):
                return True, separator
            self.arguments(separator)
            separator = ", "
            if not (yield from read_key(self, self.arguments)):
                return False, separator
            if not (yield from read_literal(self, self.arguments)):
                return False, separator
            yield from self.space()
            if not (yield from self.expect(",")) and (yield from self.peek()) != "}":
                return False, separator

    def _broken(self, separator: str) -> bool:
        """Something that is no argument follows one: the call has ended, unless the answer did."""
        if self.ended and self.at == len(self.text):
            self.keep()
        else:
            self.arguments("{}" if separator == "{" else "}")
            self.give_up()
        return True


class PythonicFormat(ToolFormat):
    names = ("pythonic", "llama4_pythonic")
    markers = (BEGIN, END)

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(template, model_type, marker="[func_name1(")

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return PythonicParser(tools)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        calls = [
            grammar.tag(f"{tool.name}(", _arguments(grammar.parameters_of(tool, enforced=at_least_one)), ")")
            for tool in tools
        ]
        listed = grammar.tag("[", grammar.separated(calls, ", ", at_most_one=at_most_one), "]")
        marked = grammar.tag(BEGIN + "[", grammar.separated(calls, ", ", at_most_one=at_most_one), "]" + END)
        if at_least_one:
            return grammar.either(listed, marked)
        text: TagFormat = {"type": "any_text", "excludes": [BEGIN]}
        return grammar.either(
            listed, marked, grammar.optional(grammar.sequence(grammar.pattern(r"[^\[<\s]"), text))
        )


def _arguments(schema: Mapping[str, Any]) -> TagFormat:
    """Keyword arguments that fit an object schema."""
    return grammar.either(*(_of_shape(shape, grammar.definitions(schema)) for shape in shapes_of(schema)))


def _of_shape(shape: Shape, definitions: Mapping[str, Any]) -> TagFormat:
    """Those of one shape, the required ones first: then each of the others can bring its comma with it."""

    def keyword(key: TagFormat, wanted: object) -> TagFormat:
        return grammar.sequence(key, grammar.text("="), _value(wanted, definitions))

    def parameter(one: Parameter) -> TagFormat:
        if KEYWORD.fullmatch(one.key):
            return keyword(grammar.text(one.key), one.schema)
        return grammar.tag(f"**{{{quoted(one.key)}: ", _value(one.schema, definitions), "}")

    comma = grammar.text(", ")
    required = [parameter(one) for one in shape.parameters if one.required]
    optional = [parameter(one) for one in shape.parameters if not one.required]
    tails = [grammar.optional(grammar.sequence(comma, other)) for other in optional]
    starts = [grammar.sequence(other, *tails[place + 1 :]) for place, other in enumerate(optional)]
    names = None if shape.others is None else shape.others.names_of(char_sets.WORD)
    if shape.others is not None and names is not None:
        low, high = shape.others.low, shape.others.high
        other = keyword(grammar.pattern(names), shape.others.schema)
        tail = grammar.repeated(grammar.sequence(comma, other), low, high)
        less = grammar.repeated(
            grammar.sequence(comma, other), max(low - 1, 0), None if high is None else high - 1
        )
        tails.append(tail)
        starts = [grammar.sequence(start, tail) for start in starts] + [grammar.sequence(other, less)]
        if low and not required:
            return starts[-1]
    if required:
        joined = [required[0]]
        for one in required[1:]:
            joined += [comma, one]
        return grammar.sequence(*joined, *tails)
    return grammar.optional(grammar.either(*starts)) if starts else grammar.text("")


def _value(schema: object, definitions: Mapping[str, Any]) -> TagFormat:
    if (
        isinstance(schema, Mapping)
        and schema.get("type") == "boolean"
        and not {"enum", "const"} & set(schema)
    ):
        return grammar.either(grammar.text("True"), grammar.text("False"))
    if isinstance(schema, Mapping):
        return grammar.json_value({**schema, **definitions})
    return grammar.json_value(True)
