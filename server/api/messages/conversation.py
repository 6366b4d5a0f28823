"""Turns as Anthropic writes them to chat messages: blocks taken apart, thinking and tool results where templates look."""

from __future__ import annotations

import re
from typing import Any

from ..body import convert
from ..errors import bad_request, shown
from ..opaque import unseal
from .protocol import (
    Content,
    CountTokensRequest,
    InputMessage,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)

# A line that a client writes anew into every system prompt. Left there it would part every prompt from the cached
# prefixes of all others, from its first tokens on.
VOLATILE = re.compile(r"^x-anthropic-billing-header[^\n]*(?:\n|\Z)", re.MULTILINE)
ERROR_MARK = "Error: "  # chat templates know no failed tool results


def chat_messages(request: CountTokensRequest) -> list[dict[str, Any]]:
    """The conversation, system prompt first. Raises a 400 for a block that the model cannot read."""
    messages: list[dict[str, Any]] = []
    if request.system is not None:
        text = system_text(request.system, "system")
        if text:
            messages.append({"role": "system", "content": text})
    called: set[str] = set()  # the ids of the tool calls so far
    for index, message in enumerate(request.messages):
        path = f"messages[{index}].content"
        match message.role:
            case "system":
                messages.append({"role": "system", "content": system_text(message.content, path)})
            case "assistant":
                add_assistant(messages, message, path, called)
            case "user":
                add_user(messages, message, path, called)
    if not messages:
        raise bad_request("messages", "must not be empty")
    return messages


def system_text(content: Content, path: str) -> str:
    """The system prompt without its volatile lines."""
    texts = [content] if isinstance(content, str) else text_blocks(content, path)
    kept = (VOLATILE.sub("", text) for text in texts)
    return "\n".join(text for text, before in zip(kept, texts, strict=True) if text or not before)


def text_blocks(blocks: list[dict[str, Any]], path: str) -> list[str]:
    """The texts of blocks that can be nothing else."""
    texts = []
    for index, block in enumerate(blocks):
        where = f"{path}[{index}]"
        match block.get("type"):
            case "text":
                texts.append(convert(block, TextBlock, where).text)
            case "tool_reference":
                texts.append(convert(block, ToolReferenceBlock, where).tool_name)
            case kind:
                raise unreadable(kind, where)
    return texts


def unreadable(kind: object, where: str) -> Exception:
    return bad_request(f"{where}.type", f"{shown(kind)} is not supported: this model reads text")


def add_user(messages: list[dict[str, Any]], message: InputMessage, path: str, called: set[str]) -> None:
    """Texts become one message of the user, each tool result one of its tool, in their order."""
    if isinstance(message.content, str):
        add_user_text(messages, message.content)
        return
    for index, block in enumerate(message.content):
        where = f"{path}[{index}]"
        match block.get("type"):
            case "text":
                add_user_text(messages, convert(block, TextBlock, where).text)
            case "tool_result":
                messages.append(tool_message(convert(block, ToolResultBlock, where), where, called))
            case kind:
                raise unreadable(kind, where)


def add_user_text(messages: list[dict[str, Any]], text: str) -> None:
    if messages and messages[-1]["role"] == "user":
        messages[-1]["content"] += "\n" + text
    else:
        messages.append({"role": "user", "content": text})


def tool_message(block: ToolResultBlock, where: str, called: set[str]) -> dict[str, Any]:
    if block.tool_use_id not in called:
        raise bad_request(
            f"{where}.tool_use_id", f"{shown(block.tool_use_id)} is the id of no tool_use block before it"
        )
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(text_blocks(content, f"{where}.content"))
    if block.is_error and not text.lower().startswith("error"):
        text = ERROR_MARK + text
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}


def add_assistant(messages: list[dict[str, Any]], message: InputMessage, path: str, called: set[str]) -> None:
    """One message: its thinking, its text, its calls."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    turn = messages[-1]
    blocks = (
        [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
    )
    for index, block in enumerate(blocks):
        where = f"{path}[{index}]"
        match block.get("type"):
            case "text":
                turn["content"] += convert(block, TextBlock, where).text
            case "thinking":
                thought = convert(block, ThinkingBlock, where)
                add_thinking(turn, thought.thinking or unseal(thought.signature or "") or "")
            case "redacted_thinking":
                pass  # another server's: nobody here can read it
            case "tool_use":
                call = convert(block, ToolUseBlock, where)
                called.add(call.id)
                function = {"name": call.name, "arguments": call.input}
                turn.setdefault("tool_calls", []).append(
                    {"id": call.id, "type": "function", "function": function}
                )
            case kind:
                raise unreadable(kind, where)


def add_thinking(turn: dict[str, Any], text: str) -> None:
    if text:
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text
