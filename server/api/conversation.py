"""Chat messages as clients write them, checked and brought into the form that chat templates read."""

from __future__ import annotations

from typing import Any

import msgspec

from ..text.template import ChatTemplate, TemplateError
from .body import convert
from .errors import bad_request, shown
from .protocol import ChatRequest, Message, TokenizeRequest, Tool

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
RESERVED_VARIABLES = {
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"),
    *("tokenize", "bos_token", "eos_token", "raise_exception", "strftime_now"),
}


def render(template: ChatTemplate, request: ChatRequest | TokenizeRequest) -> str:
    """The prompt text of a conversation. Raises a 400 for what does not fit the model's template."""
    if not template.exists:
        raise bad_request(
            "messages",
            "this model has no chat template: use /v1/completions, or start the server with --chat-template",
        )
    developer = "developer" if template.mentions("developer") else "system"
    messages = [
        for_template(message, f"messages[{index}]", developer)
        for index, message in enumerate(request.messages or [])
    ]
    continue_final = bool(request.continue_final_message)
    if continue_final and request.add_generation_prompt:
        raise bad_request("continue_final_message", "excludes add_generation_prompt: one of the two")
    if continue_final and messages[-1]["role"] != "assistant":
        raise bad_request("continue_final_message", "needs a last message of the assistant")
    try:
        return template.render(
            messages,
            tools=tools_for_template(request),
            add_generation_prompt=not continue_final and request.add_generation_prompt is not False,
            continue_final_message=continue_final,
            variables=template_variables(request),
        )
    except TemplateError as error:
        raise bad_request("messages", f"the chat template refused them: {error}") from None


def for_template(message: dict[str, Any], path: str, developer: str) -> dict[str, Any]:
    """One message: content as plain text, null fields left out, arguments of tool calls as objects."""
    checked = convert(message, Message, path)
    plain = {name: value for name, value in message.items() if value is not None}
    if checked.role == "developer":
        plain["role"] = developer
    plain["content"] = plain_text(checked, path)
    if checked.tool_calls:
        plain["tool_calls"] = [
            call_for_template(call, f"{path}.tool_calls[{index}]")
            for index, call in enumerate(message["tool_calls"])
        ]
    else:
        plain.pop("tool_calls", None)
    return plain


def plain_text(message: Message, path: str) -> str:
    """The text of a message; parts of text are joined by line ends."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise bad_request(f"{path}.content", "is required")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type")
        field = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if field is None:
            raise bad_request(
                f"{path}.content[{index}].type", f"{shown(kind)} is not supported: this model reads text"
            )
        text = part.get(field)
        if not isinstance(text, str):
            raise bad_request(f"{path}.content[{index}].{field}", "expected `str`")
        texts.append(text)
    return "\n".join(texts)


def call_for_template(call: dict[str, Any], path: str) -> dict[str, Any]:
    """A tool call of an earlier turn; templates want the arguments as an object, the API carries them as JSON text."""
    function = call["function"]
    arguments = function.get("arguments", "")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments, type=dict[str, Any]) if arguments.strip() else {}
        except (msgspec.DecodeError, RecursionError):
            raise bad_request(f"{path}.function.arguments", "is not the text of a JSON object") from None
    return {**call, "function": {**function, "arguments": arguments}}


def tools_for_template(request: ChatRequest | TokenizeRequest) -> list[dict[str, Any]] | None:
    """The tools, checked; none if the client does not want them called."""
    if request.tools is None:
        return None
    for index, tool in enumerate(request.tools):
        convert(tool, Tool, f"tools[{index}]")
    return None if isinstance(request, ChatRequest) and request.tool_choice == "none" else request.tools


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
    return variables
