"""MiniMax M2: the prompt opens the thinking. Its agents want it left in the content: `…_append_think` does that."""

from __future__ import annotations

from ..events import Content, Event
from ..interface import ReasoningParser
from .marked import MarkedThinking


class MiniMaxM2(MarkedThinking):
    names = ("minimax_m2", "minimax")
    implied = True

    def matches(self, model_type: str, template: str) -> bool:
        return model_type.startswith("minimax") and "</think>" in template


class MiniMaxM2AppendThink(MiniMaxM2):
    names = ("minimax_m2_append_think", "minimax-append-think")

    def matches(self, model_type: str, template: str) -> bool:
        return False  # only by name

    def parser(self, prompt: str) -> ReasoningParser:
        return Appended(self.opening if prompt.rstrip().endswith(self.opening) else "")


class Appended:
    """Content as it comes, behind the opening marker that the prompt had already."""

    thinking = False

    def __init__(self, opening: str) -> None:
        self._opening = opening

    def push(self, text: str) -> list[Event]:
        opened, self._opening = self._opening + text if text else "", "" if text else self._opening
        return [Content(opened)] if opened else []

    def finish(self) -> list[Event]:
        return []
