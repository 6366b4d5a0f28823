"""Which formats a model writes tool calls and thinking in: the options."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from ..options.values import BadValue, Option
from .reasoning.registry import NAMES as REASONING_NAMES
from .tools.registry import NAMES as TOOL_NAMES

AUTO, NONE = "auto", "none"


def tool_parser(name: str) -> str:
    return known(name, TOOL_NAMES)


def reasoning_parser(name: str) -> str:
    return known(name, REASONING_NAMES)


def known(name: str, names: tuple[str, ...]) -> str:
    """`name` if it is one of a parser's; raises `BadValue`."""
    if name not in (AUTO, NONE, *names):
        raise BadValue(f"expected one of {', '.join((AUTO, NONE, *names))}")
    return name


class ParsingOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tools and reasoning"""

    tool_call_parser: Annotated[
        str,
        Option(
            "Format in which the model writes tool calls: a name that vLLM or SGLang has for it; `auto` tells it from "
            "the model's type and chat template, `none` leaves calls in the text.",
            read=tool_parser,
            metavar="NAME",
        ),
    ] = AUTO
    reasoning_parser: Annotated[
        str,
        Option(
            "Format in which the model marks its thinking: a name that vLLM or SGLang has for it; `auto` tells it "
            "from the model's type and chat template, `none` leaves thinking in the text.",
            read=reasoning_parser,
            metavar="NAME",
        ),
    ] = AUTO
    exclude_tools_when_tool_choice_none: Annotated[
        bool,
        Option(
            "Leave the tools out of the prompt when tool_choice is none. Default: they stay in it, so that the "
            "prompt is the one that is cached."
        ),
    ] = False
    enable_auto_tool_choice: Annotated[
        bool, Option("Taken for vLLM's sake, and without effect: tools are always the model's to choose.")
    ] = True
