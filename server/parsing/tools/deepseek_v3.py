"""DeepSeek V3 and R1 (a type, a name, JSON in a fence) and V3.1 (a name, JSON) between tokens of their own."""

from __future__ import annotations

import re

from ..interface import Parser, TagFormat, ToolFormat, ToolSchema
from . import grammar
from .calls import CallParser
from .evidence import speaks_for
from .json_text import read_value
from .reading import Steps

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE, FENCE_END = "```json", "```"
NAME = re.compile(r"[^\s<>\"'{}\[\](),;`]*")


class DeepseekParser(CallParser):
    opening = (CALLS_BEGIN, BEGIN)
    closing = (END, CALLS_END)

    def call(self, mark: str) -> Steps[bool]:
        if mark == CALLS_BEGIN:
            yield from self.space()
            if not (yield from self.expect(BEGIN)):
                return False
        name = yield from self.take_while(NAME)
        if not (yield from self.expect(SEPARATOR)):
            return False
        fenced = False
        if (yield from self.peek()) != "{":  # then what came first was the type of the call
            name = yield from self.take_while(NAME)
            yield from self.space()
            fenced = bool((yield from self.expect(FENCE)))
            yield from self.space()
        if not name or (yield from self.peek()) != "{":
            return False
        self.start(name)
        if (yield from read_value(self, self.arguments)) and fenced:
            self.attempt()
            yield from self.space()
            if (yield from self.expect(FENCE_END)):
                self.keep()
            else:
                self.give_up()
        return True


class DeepseekV3Format(ToolFormat):
    names = ("deepseek_v3", "deepseekv3")
    markers = (CALLS_BEGIN, BEGIN, SEPARATOR, END, CALLS_END)
    before, named, after, gap = f"{BEGIN}function{SEPARATOR}", f"\n{FENCE}\n", f"\n{FENCE_END}{END}", "\n"

    def matches(self, model_type: str, template: str) -> bool:
        return FENCE in template and speaks_for(template, model_type, marker=SEPARATOR)

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return DeepseekParser(tools)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        calls = [
            grammar.tag(
                f"{self.before}{tool.name}{self.named}",
                grammar.json_arguments(tool, enforced=at_least_one),
                self.after,
            )
            for tool in tools
        ]
        block = grammar.tag(
            CALLS_BEGIN, grammar.separated(calls, self.gap, at_most_one=at_most_one), CALLS_END
        )
        return grammar.answer(
            [block],
            CALLS_BEGIN,
            "",
            at_least_one=at_least_one,
            at_most_one=at_most_one or at_least_one,
            excludes=(BEGIN,),
        )


class DeepseekV31Format(DeepseekV3Format):
    names = ("deepseek_v31", "deepseekv31")
    before, named, after, gap = BEGIN, SEPARATOR, END, ""

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(template, model_type, marker=SEPARATOR, types=("deepseek_v3",), without=(FENCE,))
