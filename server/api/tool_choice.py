"""`tools`, `tool_choice` and `parallel_tool_calls`: which functions the model may call, and whether it must."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from ..parsing.interface import ToolSchema
from .body import convert
from .errors import ApiError, bad_request, shown
from .protocol import ChatRequest, Tool

WORDS = ("none", "auto", "required")


class FunctionName(Struct):
    name: str


class NamedChoice(Struct):
    function: FunctionName


class AllowedTool(Struct):
    function: FunctionName
    type: Literal["function"] = "function"


class AllowedTools(Struct):
    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


class AllowedChoice(Struct):
    allowed_tools: AllowedTools


class ToolUse(Struct, frozen=True, kw_only=True):
    """The functions that may be called, with their places in the request; `some_only`: the request has more."""

    schemas: list[ToolSchema] = []
    places: list[int] = []
    required: bool = False
    named: bool = False
    some_only: bool = False
    at_most_one: bool = False

    @property
    def constrained(self) -> bool:
        """Must a grammar see to it that calls are as the client wants them?"""
        strict = any(schema.strict for schema in self.schemas)
        return bool(self.schemas) and (self.required or self.some_only or self.at_most_one or strict)


def read_tool_use(request: ChatRequest) -> ToolUse:
    """Raises a 400 for tools that are none, twice the same name, and a choice that does not fit them."""
    choice = request.tool_choice
    if request.tools is None:
        if choice not in (None, "none"):
            raise bad_request("tool_choice", "is only allowed with tools")
        return ToolUse()
    schemas = [tool_schema(tool, f"tools[{index}]") for index, tool in enumerate(request.tools)]
    refuse_same_names(schemas)
    if choice == "none":
        return ToolUse()
    names: list[str] | None = None
    required = choice == "required"
    named = False
    if isinstance(choice, dict):
        match read_choice(choice):
            case NamedChoice(function=function):
                names, required, named = [function.name], True, True
                refuse_unknown(names, schemas, "tool_choice.function.name")
            case AllowedChoice(allowed_tools=allowed):
                names, required = [tool.function.name for tool in allowed.tools], allowed.mode == "required"
                refuse_unknown(names, schemas, "tool_choice.allowed_tools.tools")
    elif choice is not None and choice not in WORDS:
        raise bad_request(
            "tool_choice",
            f"expected none, auto, required, or an object of type function or allowed_tools, got {shown(choice)}",
        )
    places = [index for index, schema in enumerate(schemas) if names is None or schema.name in names]
    return ToolUse(
        schemas=[schemas[index] for index in places],
        places=places,
        required=required,
        named=named,
        some_only=len(places) < len(schemas),
        at_most_one=named or request.parallel_tool_calls is False,
    )


def read_choice(choice: dict[str, Any]) -> NamedChoice | AllowedChoice:
    kind = choice.get("type")
    if kind == "function":
        return convert(choice, NamedChoice, "tool_choice")
    if kind == "allowed_tools":
        return convert(choice, AllowedChoice, "tool_choice")
    raise bad_request("tool_choice.type", f"expected function or allowed_tools, got {shown(kind)}")


def tool_schema(tool: dict[str, Any], path: str) -> ToolSchema:
    function = convert(tool, Tool, path).function
    return ToolSchema(function.name, function.parameters or {}, strict=bool(function.strict))


def refuse_same_names(schemas: list[ToolSchema]) -> None:
    seen: set[str] = set()
    for index, schema in enumerate(schemas):
        if schema.name in seen:
            raise bad_request(f"tools[{index}].function.name", f"{shown(schema.name)} is there twice")
        seen.add(schema.name)


def refuse_unknown(names: list[str], schemas: list[ToolSchema], path: str) -> None:
    known = {schema.name for schema in schemas}
    if not names:
        raise bad_request(path, "must name at least one tool")
    for name in names:
        if name not in known:
            raise unknown_function(path, name)


def unknown_function(path: str, name: str) -> ApiError:
    return bad_request(path, f"{shown(name)} is none of the functions in tools")
