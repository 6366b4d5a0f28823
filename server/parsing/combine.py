"""One parser and one structural tag for a whole answer: thinking, then text and tool calls."""

from __future__ import annotations

from .events import Content, Event, Reasoning
from .harmony import HarmonyReasoning
from .interface import Parser, ReasoningFormat, ReasoningParser, TagFormat, ToolFormat, ToolSchema
from .tags import any_text
from .tools.grammar import either


class AnswerParser:
    """The reasoning format's parser, then the tool format's for what is not thinking. Either may be missing."""

    def __init__(
        self,
        prompt: str,
        reasoning: ReasoningFormat | None,
        tools: ToolFormat | None,
        schemas: list[ToolSchema],
        *,
        hide_reasoning: bool = False,
    ) -> None:
        self._hide = hide_reasoning
        self._tools: Parser | None = None
        self._reasoning: ReasoningParser | None
        if isinstance(reasoning, HarmonyReasoning):  # one parser does both
            self._reasoning = reasoning.parser_with_tools(prompt) if schemas else reasoning.parser(prompt)
            return
        self._reasoning = None if reasoning is None else reasoning.parser(prompt)
        if tools is not None and schemas:
            self._tools = tools.parser(schemas)

    @property
    def reasons(self) -> bool:
        """Is thinking told from the rest?"""
        return self._reasoning is not None

    @property
    def thinking(self) -> bool:
        """Does the text so far end inside the thinking?"""
        return self._reasoning is not None and self._reasoning.thinking

    def push(self, text: str) -> list[Event]:
        return self._through_tools([Content(text)] if self._reasoning is None else self._reasoning.push(text))

    def finish(self) -> list[Event]:
        events = [] if self._reasoning is None else self._through_tools(self._reasoning.finish())
        return events if self._tools is None else events + self._tools.finish()

    def _through_tools(self, events: list[Event]) -> list[Event]:
        result: list[Event] = []
        for event in events:
            if isinstance(event, Reasoning):
                if not self._hide:
                    result.append(event)
            elif isinstance(event, Content) and self._tools is not None:
                result += self._tools.push(event.text)
            else:
                result.append(event)
        return result


def answer_tag(
    reasoning: ReasoningFormat | None,
    tools: ToolFormat | None,
    schemas: list[ToolSchema],
    text: TagFormat | None,
    *,
    prompt: str,
    at_least_one: bool,
    at_most_one: bool,
    budget: int | None,
) -> TagFormat:
    """What an answer may look like: at most `budget` tokens of thinking, then calls of `schemas`, or text as `text` says.

    With `at_least_one` the answer is calls alone. If `text` is None, text is free, and may come beside calls.
    """
    parts: list[TagFormat] = []
    calls = tools if schemas else None
    if calls is not None:
        alone = at_least_one or text is not None
        parts.append(calls.tag(schemas, at_least_one=alone, at_most_one=at_most_one))
    if not at_least_one and (text is not None or calls is None):
        free = any_text() if text is None else text
        parts.append(free if reasoning is None else reasoning.final(prompt, free))
    answer = either(*parts)
    return answer if reasoning is None else reasoning.tag(prompt, answer, budget=budget)
