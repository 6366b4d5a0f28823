"""The formats of the served model: as the options name them, or as its type and chat template show them."""

from __future__ import annotations

from dataclasses import dataclass

from .harmony import HarmonyReasoning, HarmonyTools
from .interface import ReasoningFormat, ToolFormat
from .options import AUTO, NONE
from .reasoning.registry import detect as detect_reasoning
from .reasoning.registry import find as find_reasoning
from .tools.registry import detect as detect_tools
from .tools.registry import find as find_tools


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """None: the model has no such format, or nobody wants its text taken apart."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None


def choose(tools: str, reasoning: str, *, model_type: str, template: str) -> AnswerFormats:
    """`tools` and `reasoning` are values of the options; `template` is the text of the chat template."""
    calls: ToolFormat | None = None
    thinking: ReasoningFormat | None = None
    if tools != NONE:
        calls = detect_tools(model_type, template) if tools == AUTO else find_tools(tools)
    if reasoning != NONE:
        thinking = detect_reasoning(model_type, template) if reasoning == AUTO else find_reasoning(reasoning)
    if calls is not None and isinstance(thinking, HarmonyReasoning):
        calls = HarmonyTools()  # calls lie in channels too, whatever an option says
    return AnswerFormats(calls, thinking)
