"""Chat messages as clients write them, checked and brought into the form that chat templates read."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Any

import msgspec

from ..services import Services
from ..text.dialect import Dialect
from ..text.template import ChatTemplate, TemplateError
from .body import convert
from .errors import bad_request, shown
from .protocol import ChatRequest, Message, TokenizeRequest, Tool
from .text_parts import part_texts

INLINE_MESSAGES = 64
THINKING_SWITCHES = ("enable_thinking", "thinking")  # variables of chat templates
RESERVED_VARIABLES = {
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"),
    *("tokenize", "bos_token", "eos_token", "raise_exception", "strftime_now"),
}


def render(
    template: ChatTemplate, request: ChatRequest | TokenizeRequest, *, tools_unless_none: bool = False
) -> str:
    """The prompt text of a conversation; with `tools_unless_none` tools that must not be called are left out.

    Raises a 400 for what does not fit the model's template.
    """
    if not template.exists:
        raise bad_request(
            "messages",
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
        )
    messages = [
        for_template(message, f"messages[{index}]", template.dialect)
        for index, message in enumerate(request.messages or [])
    ]
    name_tool_results(messages)
    continue_final = bool(request.continue_final_message)
    if continue_final and request.add_generation_prompt:
        raise bad_request("continue_final_message", "excludes add_generation_prompt: one of the two")
    if continue_final and messages[-1]["role"] != "assistant":
        raise bad_request("continue_final_message", "needs a last message of the assistant")
    try:
        return template.render(
            messages,
            tools=tools_for_template(request, unless_none=tools_unless_none),
            add_generation_prompt=not continue_final and request.add_generation_prompt is not False,
            continue_final_message=continue_final,
            variables=template_variables(request),
        )
    except TemplateError as error:
        raise bad_request("messages", f"the chat template refused them: {error}") from None


async def render_async(services: Services, request: ChatRequest | TokenizeRequest) -> str:
    """Like `render`; a long conversation is rendered on another thread, so that other streams go on meanwhile."""
    call = partial(
        render,
        services.template,
        request,
        tools_unless_none=services.config.exclude_tools_when_tool_choice_none,
    )
    return call() if len(request.messages or []) <= INLINE_MESSAGES else await asyncio.to_thread(call)


def for_template(message: dict[str, Any], path: str, dialect: Dialect) -> dict[str, Any]:
    """One message: content as plain text, null fields left out, calls and earlier thinking as the template reads them."""
    checked = convert(message, Message, path)
    plain = {name: value for name, value in message.items() if value is not None}
    if checked.role == "developer" and not dialect.developer:
        plain["role"] = "system"
    plain["content"] = plain_text(checked, path)
    if checked.tool_calls:
        plain["tool_calls"] = [
            call_for_template(call, f"{path}.tool_calls[{index}]", dialect)
            for index, call in enumerate(message["tool_calls"])
        ]
        if dialect.null_content and not plain["content"]:
            plain["content"] = None
    else:
        plain.pop("tool_calls", None)
    if checked.tool_call_id is not None:
        plain["tool_call_id"] = call_id(checked.tool_call_id, dialect)
    reasoning = checked.reasoning_content or checked.reasoning
    if checked.role == "assistant" and reasoning:
        plain["reasoning_content"] = plain["reasoning"] = reasoning
        if dialect.thinking and not plain["content"]:
            plain["thinking"] = reasoning
    return plain


def name_tool_results(messages: list[dict[str, Any]]) -> None:
    """The name of the function that was called, for templates that show it beside its result."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls", ()):
            if call.get("id") is not None:
                names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and message.get("tool_call_id") in names:
            message.setdefault("name", names[message["tool_call_id"]])


def plain_text(message: Message, path: str) -> str:
    """The text of a message; parts of text are joined by line ends."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise bad_request(f"{path}.content", "is required")
    return "\n".join(part_texts(content, f"{path}.content"))


def call_for_template(call: dict[str, Any], path: str, dialect: Dialect) -> dict[str, Any]:
    """A tool call of an earlier turn; templates want the arguments as an object, the API carries them as JSON text."""
    function = call["function"]
    arguments = function.get("arguments", "")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any]) if arguments.strip() else {}
        except (msgspec.DecodeError, RecursionError):
            raise bad_request(f"{path}.function.arguments", "is not the text of a JSON object") from None
    if dialect.arguments_as_text:
        arguments = msgspec.json.encode(arguments).decode()
    adapted = {"type": "function", **call, "function": {**function, "arguments": arguments}}
    if call.get("id") is not None:
        adapted["id"] = call_id(call["id"], dialect)
    return adapted


def call_id(given: str, dialect: Dialect) -> str:
    """An id of the length that the template takes, the same for a call and its result."""
    if dialect.call_id_length is None or len(given) == dialect.call_id_length:
        return given
    digest = hashlib.blake2b(given.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
    return digest[: dialect.call_id_length]


def tools_for_template(
    request: ChatRequest | TokenizeRequest, *, unless_none: bool
) -> list[dict[str, Any]] | None:
    """The tools, checked; with `unless_none` not those that the client does not want called."""
    if request.tools is None:
        return None
    for index, tool in enumerate(request.tools):
        convert(tool, Tool, f"tools[{index}]")
    unwanted = isinstance(request, ChatRequest) and request.tool_choice == "none"
    return None if unwanted and unless_none else request.tools


def template_variables(request: ChatRequest | TokenizeRequest) -> dict[str, Any]:
    """What a client may set in the template: scalars under names that are not the server's own."""
    variables: dict[str, Any] = dict(request.chat_template_kwargs or {})
    for name in variables:
        if name in RESERVED_VARIABLES:
            raise bad_request("chat_template_kwargs", f"{shown(name)} is not a client's to set")
    if isinstance(request, ChatRequest):
        if request.documents is not None:
            variables["documents"] = request.documents
        if request.reasoning_effort is not None:
            variables["reasoning_effort"] = request.reasoning_effort
        if request.verbosity is not None:
            variables["verbosity"] = request.verbosity
        if request.reasoning_effort == "none":
            for name in THINKING_SWITCHES:
                if variables.setdefault(name, False) is True:
                    raise bad_request("reasoning_effort", f"`none` contradicts chat_template_kwargs.{name}")
    return variables


def wants_no_thinking(request: ChatRequest) -> bool:
    """Has the client switched thinking off, by any of the ways to say so?"""
    variables = request.chat_template_kwargs or {}
    return request.reasoning_effort == "none" or any(
        variables.get(name) is False for name in THINKING_SWITCHES
    )
