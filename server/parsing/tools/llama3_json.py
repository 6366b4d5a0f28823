"""Llama 3.1 to 3.3 and Llama 4: a bare JSON object, perhaps after <|python_tag|>; `;` between several."""

from __future__ import annotations

from ..interface import Parser, TagFormat, ToolFormat, ToolSchema
from . import grammar
from .calls import CallParser
from .evidence import speaks_for
from .json_call import read_call
from .json_text import quoted
from .reading import Steps

PYTHON_TAG = "<|python_tag|>"


class LlamaJsonParser(CallParser):
    """An object is a call if it has a name and arguments; after text, only if the name is a tool's."""

    opening = (PYTHON_TAG, "{")
    leads = ("; ", ";\n", ";")

    def call(self, mark: str) -> Steps[bool]:
        if mark == PYTHON_TAG:
            yield from self.space()
            if not (yield from self.expect("{")):
                return False
        known = self.said and mark != PYTHON_TAG
        return (
            yield from read_call(
                self, marked=False, accept=lambda name: bool(name) and (not known or name in self.tools)
            )
        )


class LlamaJsonFormat(ToolFormat):
    names = ("llama3_json", "llama3", "llama4_json")
    markers = (PYTHON_TAG,)

    def matches(self, model_type: str, template: str) -> bool:
        return any(
            speaks_for(template, model_type, marker=marker, without=("[func_name1(",))
            for marker in ('{"name": function name, "parameters"', PYTHON_TAG)
        )

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return LlamaJsonParser(tools)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        calls = [
            grammar.tag(
                f'{{"name": {quoted(tool.name)}, "parameters": ',
                grammar.json_arguments(tool, enforced=at_least_one),
                "}",
            )
            for tool in tools
        ]
        return grammar.answer(calls, '{"name": ', "; ", at_least_one=at_least_one, at_most_one=at_most_one)
