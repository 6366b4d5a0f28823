"""A request of the Responses API as a chat request."""

from __future__ import annotations

from typing import Any

from ..body import convert
from ..errors import bad_request, shown
from ..protocol import ChatRequest
from .items import Item, chat_messages
from .protocol import FunctionTool, ResponsesRequest

# What the chat request calls a field, and what Responses does.
FIELD_NAMES = {
    r"tools(\[\d+\])\.function": r"tools\1",
    r"tool_choice\.function": "tool_choice",
    r"tool_choice\.allowed_tools": "tool_choice",
    r"response_format\.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
    "verbosity": "text.verbosity",
    "messages": "input",
}
# ... and where it brought the constraint itself.
OWN_CONSTRAINT = {r"(response_format[^ ]*)": r"\1"}
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
# What `include` may name; the others are about tools of OpenAI's, whose calls never occur here.
INCLUDABLE = {
    LOGPROBS,
    ENCRYPTED_REASONING,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
}
# Fields of chat completions whose wish a response has no place for, and what asks for nothing.
OUT_OF_PLACE: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "prompt_logprobs": None,
    "return_token_ids": False,
    "return_tokens_as_token_ids": False,
    "prediction": {},
    "return_metrics": False,
}
ONLY_FUNCTIONS = "this server takes tools of type function, which the client runs"
# Fields of OpenAI's that need OpenAI's servers.
FOREIGN = ("conversation", "prompt", "context_management", "moderation")
# Same name in both requests, but not the same meaning.
OWN = {"stream", "stream_options", "tools", "tool_choice", "top_logprobs", *OUT_OF_PLACE}
SHARED = (set(ChatRequest.__struct_fields__) & set(ResponsesRequest.__struct_fields__)) - OWN


def field_names(request: ResponsesRequest) -> dict[str, str]:
    """What the client calls the fields of the chat request; see `fields_named`."""
    return FIELD_NAMES if request.response_format is None else {**OWN_CONSTRAINT, **FIELD_NAMES}


def check(request: ResponsesRequest) -> None:
    """What can be said of the request alone. Raises a 400."""
    for name in FOREIGN:
        value = getattr(request, name)
        if value:
            raise bad_request(name, f"{shown(value)} needs OpenAI's servers: leave it out")
    for name, nothing in OUT_OF_PLACE.items():
        value = getattr(request, name)
        if value is not None and value != nothing:
            raise bad_request(name, "has no place in a response: use /v1/chat/completions")
    for index, name in enumerate(request.include or ()):
        if name not in INCLUDABLE:
            raise bad_request(
                f"include[{index}]", f"{shown(name)} is not one of {', '.join(sorted(INCLUDABLE))}"
            )
    if request.background and request.stream:
        raise bad_request("stream", "excludes background: poll GET /v1/responses/{id} instead")
    if request.background and request.store is False:
        raise bad_request("store", "must not be false with background: its response is read from the store")
    if request.text is not None and request.text.format is not None and request.response_format is not None:
        raise bad_request("response_format", "excludes text.format: one of the two")


def chat_request(request: ResponsesRequest, items: list[Item], first_own: int) -> ChatRequest:
    """`items` is the whole conversation, from `first_own` on the request's own input. Raises a 400."""
    messages = chat_messages(request.instructions, items, first_own)
    if not messages:
        raise bad_request("input", "is required: a text or a list of items")
    chat = ChatRequest(messages=messages)
    for name in SHARED:
        setattr(chat, name, getattr(request, name))
    chat.stream = request.stream
    chat.max_completion_tokens = request.max_output_tokens
    chat.logprobs = wants_logprobs(request) or None
    chat.top_logprobs = request.top_logprobs if chat.logprobs else None
    if request.reasoning is not None:
        chat.reasoning_effort = request.reasoning.effort
    if request.text is not None:
        chat.verbosity = request.text.verbosity
        if request.text.format is not None:
            chat.response_format = response_format(request.text.format)
    add_tools(chat, request)
    return chat


def wants_logprobs(request: ResponsesRequest) -> bool:
    return LOGPROBS in (request.include or ()) or bool(request.top_logprobs)


def response_format(form: dict[str, Any]) -> dict[str, Any]:
    """Flat here, nested in chat completions."""
    if form.get("type") != "json_schema":
        return form
    if "schema" not in form:
        raise bad_request("text.format.schema", "is required")
    inner = {name: value for name, value in form.items() if name != "type" and value is not None}
    return {"type": "json_schema", "json_schema": {"name": "response", **inner}}


def add_tools(chat: ChatRequest, request: ResponsesRequest) -> None:
    tools = [chat_tool(tool, f"tools[{index}]") for index, tool in enumerate(request.tools or ())]
    choice = request.tool_choice
    if isinstance(choice, dict):
        match choice.get("type"):
            case "function":
                choice = {"type": "function", "function": {"name": choice.get("name")}}
            case "allowed_tools":
                choice = allowed(choice)
            case kind:
                raise bad_request("tool_choice.type", f"{shown(kind)} is not supported: {ONLY_FUNCTIONS}")
    chat.tools = tools or None
    chat.tool_choice = choice
    if not tools and choice in ("auto", "none"):
        chat.tool_choice = None  # what it asks for is the case
    if not tools:
        chat.parallel_tool_calls = None


def chat_tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind != "function":
        raise bad_request(f"{path}.type", f"{shown(kind)} is not supported: {ONLY_FUNCTIONS}")
    checked = convert(tool, FunctionTool, path)
    function: dict[str, Any] = {"name": checked.name}
    for name in ("description", "parameters", "strict"):
        value = getattr(checked, name)
        if value is not None:
            function[name] = value
    return {"type": "function", "function": function}


def allowed(choice: dict[str, Any]) -> dict[str, Any]:
    """`allowed_tools`, flat here and nested in chat completions."""
    tools = choice.get("tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_request("tool_choice.tools", "expected a list of tools")
    for index, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise bad_request(
                f"tool_choice.tools[{index}].type",
                f"{shown(tool.get('type'))} is not supported: {ONLY_FUNCTIONS}",
            )
    named = [{"type": "function", "function": {"name": tool.get("name")}} for tool in tools]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
