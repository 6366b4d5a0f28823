"""What is an exchange, and how do exchanges become a dialogue?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ..split import Source

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """When is a reply right?

    exact: the reply is one of `want`; all: it has every string of `want` and none of `avoid`; any: at least
    one of `want`; json: it parses to the same value as `want[0]`; calls: its tool calls are those of
    `want[0]`, a JSON list of {"name", "arguments"}; story: all of `want`, and at least 40 words.
    """

    mode: Literal["exact", "all", "any", "json", "calls", "story"]
    want: tuple[str, ...]
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A few messages that end with the assistant's answer, and the check of that answer."""

    messages: list[Message]
    check: Check
    system: str | None = None
    tools: list[Tool] = field(default_factory=list)


MakeExchange = Callable[[Source], Exchange]


def ask(question: str, answer: str, check: Check, system: str | None = None) -> Exchange:
    """An exchange of one question and one answer."""
    return Exchange([user(question), assistant(answer)], check, system)


def user(content: str) -> Message:
    """A user message."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant message without tool calls."""
    return {"role": "assistant", "content": content}


def casual(source: Source, question: str) -> str:
    """`question` as people type it: at times with a greeting, a thank-you, in lower case, unpunctuated."""
    rng = source.rng
    if source.chance(0.12):
        question = rng.choice(_OPENINGS) + question[0].lower() + question[1:]
    if source.chance(0.08):
        question += rng.choice(_CLOSINGS)
    if source.chance(0.12):
        question = question[0].lower() + question[1:]
    if source.chance(0.12) and question[-1] in ".?":
        question = question[:-1]
    return question


_OPENINGS = (
    "Hi! ",
    "Hello, ",
    "Hey, ",
    "Please, ",
    "Quick question: ",
    "OK, ",
    "Now, ",
    "And ",
    "So, ",
    "Tell me: ",
)
_CLOSINGS = (" Thanks.", " Thank you!", " Please.")
