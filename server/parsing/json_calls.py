"""Tool calls of models that have no format of their own: a JSON array of {"name": ..., "parameters": {...}}.

Only a grammar makes a model write this, so it is used where calls are required.
"""

from __future__ import annotations

from typing import Any

from .interface import Parser, TagFormat, ToolFormat, ToolSchema
from .tools.calls import CallParser
from .tools.grammar import json_value, parameters_of, sequence, tag, text
from .tools.json_call import read_call
from .tools.json_text import quoted
from .tools.reading import Steps


class JsonCallsParser(CallParser):
    opening = ("[",)
    reopening = (",",)
    closing = ("]",)

    def call(self, mark: str) -> Steps[bool]:
        yield from self.space()
        if (yield from self.expect("{")) is None:
            return False
        return (yield from read_call(self))


class JsonCalls(ToolFormat):
    names = ("json",)

    def matches(self, model_type: str, template: str) -> bool:
        return False

    def parser(self, tools: list[ToolSchema]) -> Parser:
        return JsonCallsParser(tools)

    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        """Calls alone, also where none are required: text beside them would not be told from them."""
        calls: TagFormat = {
            "type": "tags_with_separator",
            "tags": [json_call(tool) for tool in tools],
            "separator": ", ",
            "at_least_one": at_least_one,
            "stop_after_first": at_most_one,
        }
        return sequence(text("["), calls, text("]"))


def json_call(tool: ToolSchema) -> TagFormat:
    parameters: dict[str, Any] = parameters_of(tool, enforced=True)
    return tag(f'{{"name": {quoted(tool.name)}, "parameters": ', json_value(parameters), "}")
