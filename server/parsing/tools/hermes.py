"""Hermes 2 Pro and Qwen 2.5 / Qwen 3: a JSON object between <tool_call> tags."""

from __future__ import annotations

from ..interface import Parser, TagFormat, ToolFormat, ToolSchema
from . import grammar
from .calls import CallParser
from .evidence import speaks_for
from .json_call import read_call
from .json_text import quoted
from .reading import Steps

BEGIN, END = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    opening = (BEGIN,)
    closing = (END,)
    leads = ("\n",)

    def call(self, mark: str) -> Steps[bool]:
        yield from self.space()
        return bool((yield from self.expect("{")) and (yield from read_call(self)))


class HermesFormat(ToolFormat):
    names = ("hermes", "qwen25", "qwen")
    markers = (BEGIN, END)

    def matches(self, model_type: str, template: str) -> bool:
        return speaks_for(
            template,
            model_type,
            marker=BEGIN,
            types=("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
            without=("<function=", "<arg_key>", "]minimax["),
        )

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return HermesParser(tools)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        calls = [
            grammar.tag(
                f'{BEGIN}\n{{"name": {quoted(tool.name)}, "arguments": ',
                grammar.json_arguments(tool, enforced=at_least_one),
                f"}}\n{END}",
            )
            for tool in tools
        ]
        return grammar.answer(calls, BEGIN, "\n", at_least_one=at_least_one, at_most_one=at_most_one)
