"""Mistral: [TOOL_CALLS] before a JSON array of calls or, since v11, before each call: name[CALL_ID]id[ARGS]{...}."""

from __future__ import annotations

import re

from ..call_ids import CallIds
from ..interface import Parser, TagFormat, ToolFormat, ToolSchema
from . import grammar
from .calls import CallParser
from .evidence import speaks_for
from .json_call import read_call
from .json_text import quoted, read_value
from .reading import Steps

CALLS, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
NAME = re.compile(r"[^\s<>\"'{}\[\](),;]*")


class MistralParser(CallParser):
    opening = (CALLS,)

    def call(self, mark: str) -> Steps[bool]:
        yield from self.space()
        if (yield from self.expect("[")):
            return (yield from self._array())
        name = yield from self.take_while(NAME)
        call_id = None
        separator = yield from self.expect(CALL_ID, ARGUMENTS)
        if separator == CALL_ID:
            call_id = yield from self.take_while(NAME)
            separator = yield from self.expect(ARGUMENTS)
            if separator is None:
                return False
        if not name or (separator is None and (yield from self.peek()) != "{"):
            return False
        self.start(name, call_id)
        yield from self.space()
        yield from read_value(self, self.arguments)
        return True

    def _array(self) -> Steps[bool]:
        some = False
        while True:
            yield from self.space()
            if not (yield from self.expect("{")) or not (yield from read_call(self)):
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


class MistralFormat(ToolFormat):
    names = ("mistral",)
    markers = (CALLS, ARGUMENTS, CALL_ID)
    call_ids = CallIds("", 9)  # the only ids that its templates take

    def matches(self, model_type: str, template: str) -> bool:
        types = ("mistral", "mistral3", "mixtral", "ministral", "ministral3")
        return speaks_for(template, model_type, marker=CALLS, types=types)

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return MistralParser(tools)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        """Both ways: a model writes the one it was trained on."""
        listed, named = [], []
        for tool in tools:
            arguments = grammar.json_arguments(tool, enforced=at_least_one)
            listed.append(grammar.tag(f'{{"name": {quoted(tool.name)}, "arguments": ', arguments, "}"))
            named.append(grammar.tag(f"{CALLS}{tool.name}{ARGUMENTS}", arguments, ""))
        arrays = [
            grammar.tag(f"{CALLS}{space}[", grammar.separated(listed, ", ", at_most_one=at_most_one), "]")
            for space in ("", " ")
        ]
        if at_least_one:
            return grammar.either(*arrays, grammar.separated(named, "", at_most_one=at_most_one))
        return grammar.answer([*arrays, *named], CALLS, "", at_least_one=False, at_most_one=at_most_one)
