"""Kimi K2: tokens of its own around an id that holds the name, and JSON."""

from __future__ import annotations

import re

from ..interface import Parser, TagFormat, ToolFormat, ToolSchema
from . import grammar
from .calls import CallParser
from .evidence import speaks_for
from .json_text import read_value
from .reading import Steps

CALLS_BEGIN, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
BEGIN, ARGUMENTS, END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
CALL_ID = re.compile(r"[^\s<>\"'{}\[\](),;]*")


class KimiParser(CallParser):
    opening = (CALLS_BEGIN, BEGIN)
    closing = (END, CALLS_END)

    def call(self, mark: str) -> Steps[bool]:
        if mark == CALLS_BEGIN:
            yield from self.space()
            if not (yield from self.expect(BEGIN)):
                return False
        yield from self.space()
        call_id = yield from self.take_while(CALL_ID)
        yield from self.space()
        name = call_id.removeprefix("functions.").partition(":")[0]
        if not name or not (yield from self.expect(ARGUMENTS)):
            return False
        self.start(name, call_id)
        yield from self.space()
        yield from read_value(self, self.arguments)
        return True


class KimiK2Format(ToolFormat):
    names = ("kimi_k2",)
    markers = (CALLS_BEGIN, BEGIN, ARGUMENTS, END, CALLS_END)

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(template, model_type, marker=BEGIN, types=("kimi_k2", "kimi_linear"))

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return KimiParser(tools)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        calls = [
            grammar.tag(
                f"{BEGIN}functions.{tool.name}:",
                grammar.sequence(
                    grammar.pattern("[0-9]{1,3}"),
                    grammar.text(ARGUMENTS),
                    grammar.json_arguments(tool, enforced=at_least_one),
                ),
                END,
            )
            for tool in tools
        ]
        block = grammar.tag(CALLS_BEGIN, grammar.separated(calls, "", at_most_one=at_most_one), CALLS_END)
        return grammar.answer(
            [block],
            CALLS_BEGIN,
            "",
            at_least_one=at_least_one,
            at_most_one=at_most_one or at_least_one,
            excludes=(BEGIN,),
        )
