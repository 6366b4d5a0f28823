"""What a reasoning format and a tool-call format are: one small file each, and one line in the registry.

Parsers are incremental and indifferent to how the text is cut: pushing it character by character, or all at once,
gives the same events once neighbours are merged. They never fail. What does not follow the format is content, and no
character of it is lost; they hold back only what may still turn out to be a marker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from .call_ids import OPENAI, CallIds
from .events import Event

TagFormat: TypeAlias = dict[
    str, Any
]  # a node of xgrammar's structural tags, such as {"type": "sequence", ...}


class ToolSchema(Struct, frozen=True):
    """A tool as the client described it. `parameters` is its JSON Schema ({} if it gave none)."""

    name: str
    parameters: dict[str, Any]
    strict: bool = False


class Parser(Protocol):
    """The state of one answer."""

    def push(self, text: str) -> list[Event]:
        """What is certain after this text."""

    def finish(self) -> list[Event]:
        """The answer has ended: what was held back."""


class ReasoningParser(Parser, Protocol):
    """A parser that knows whether the text so far ends inside the thinking."""

    @property
    def thinking(self) -> bool: ...


class ToolFormat(ABC):
    """How one family of models writes tool calls."""

    names: tuple[str, ...]  # of --tool-call-parser, every spelling; the first is ours
    markers: tuple[str, ...] = ()  # the special tokens whose text the parser must see
    stops: tuple[str, ...] = ()  # tokens that end an answer, whatever the model's files say
    call_ids: CallIds = OPENAI  # of calls whose text carries none

    @abstractmethod
    def matches(self, model_type: str, template: str) -> bool:
        """For `auto`: does a model of this type (config.json) with this chat template write calls this way?"""

    @abstractmethod
    def parser(self, tools: list[ToolSchema]) -> Parser:
        """Makes Content, CallStart and CallArguments of the text after the reasoning."""

    @abstractmethod
    def tag(self, tools: list[ToolSchema], *, at_least_one: bool, at_most_one: bool) -> TagFormat:
        """The structural tag of an answer (after the reasoning) whose calls name one of `tools` and fit its schema.

        With `at_least_one` the answer is calls and nothing else; without it text may come before and between them.
        Arguments of a tool that is not `strict` need only be valid in the format unless `at_least_one`.
        """


class ReasoningFormat(ABC):
    """How one family of models marks its thinking."""

    names: tuple[str, ...]  # of --reasoning-parser, every spelling; the first is ours
    markers: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()

    @abstractmethod
    def matches(self, model_type: str, template: str) -> bool:
        """For `auto`, as in `ToolFormat`."""

    @abstractmethod
    def parser(self, prompt: str) -> ReasoningParser:
        """Makes Reasoning of the thinking, Content of the rest. The prompt's end tells if thinking is open already."""

    @abstractmethod
    def tag(self, prompt: str, answer: TagFormat, *, budget: int | None) -> TagFormat:
        """Thinking of at most `budget` tokens as this prompt calls for it (perhaps none), then `answer`."""

    def final(self, prompt: str, answer: TagFormat) -> TagFormat:
        """`answer`, a text, as this format writes the final part of an answer: framed, if it frames it."""
        return answer
