"""Input items: checked, brought into the form in which they are stored and listed, and turned into chat messages."""

from __future__ import annotations

import secrets
from typing import Any, TypeAlias

import msgspec

from ..body import convert
from ..errors import bad_request, shown
from ..opaque import unseal
from ..text_parts import part_texts
from .protocol import FunctionCallItem, FunctionCallOutputItem, MessageItem, Parts, ReasoningItem

Item: TypeAlias = dict[str, Any]  # in the stored form: with an id, a type and a status
Message: TypeAlias = dict[str, Any]

ID_PREFIXES = {
    "message": "msg_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "reasoning": "rs_",
}
ID_BYTES = 24
SYSTEM_ROLES = ("system", "developer")


def new_id(kind: str) -> str:
    """An id for an item of type `kind`."""
    return ID_PREFIXES[kind] + secrets.token_hex(ID_BYTES)


def stored_items(given: Parts) -> list[Item]:
    """The client's `input` as items. Raises a 400 for an item or a part that the model cannot read."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [stored_item(item, f"input[{index}]") for index, item in enumerate(given)]


def stored_item(item: dict[str, Any], path: str) -> Item:
    kind = item.get("type", "message" if "role" in item else None)
    given_id = item.get("id")
    head = {"id": given_id if given_id and isinstance(given_id, str) else None, "type": kind}
    match kind:
        case "message":
            message = convert(item, MessageItem, path)
            part = "output_text" if message.role == "assistant" else "input_text"
            texts = part_texts(message.content, f"{path}.content")
            body: dict[str, Any] = {
                "role": message.role,
                "content": [text_part(part, text) for text in texts],
            }
        case "function_call":
            call = convert(item, FunctionCallItem, path)
            if not is_object(call.arguments):
                raise bad_request(f"{path}.arguments", "is not the text of a JSON object")
            body = msgspec.structs.asdict(call)
        case "function_call_output":
            output = convert(item, FunctionCallOutputItem, path)
            part_texts(output.output, f"{path}.output")
            body = msgspec.structs.asdict(output)
        case "reasoning":
            reasoning = convert(item, ReasoningItem, path)
            thinking_text(reasoning, path)
            body = {"summary": item.get("summary") or [], **msgspec.structs.asdict(reasoning)}
        case None:
            raise bad_request(f"{path}.type", "is required")
        case _:
            raise bad_request(
                f"{path}.type",
                f"{shown(kind)} is not supported: this server takes {', '.join(ID_PREFIXES)}",
            )
    head["id"] = head["id"] or new_id(kind)
    return {**head, **body, "status": "completed"}


def text_part(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text} | ({"annotations": []} if kind == "output_text" else {})


def thinking_text(item: ReasoningItem, path: str) -> str:
    """What was thought, "" if the client brings back nothing that this server can read."""
    texts = []
    for index, part in enumerate(item.content or ()):
        text = part.get("text")
        if part.get("type") != "reasoning_text" or not isinstance(text, str):
            raise bad_request(
                f"{path}.content[{index}]", "expected a part of type reasoning_text with a text"
            )
        texts.append(text)
    return "".join(texts) or unseal(item.encrypted_content or "") or ""


def is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False
    return True


def chat_messages(instructions: str | None, items: list[Item], first_own: int) -> list[Message]:
    """Items in the stored form as a conversation; those from `first_own` on are the request's own `input`.

    What an assistant said, thought and called between two turns of others is one message. Calls that were cut off in
    an earlier answer are left out. Raises a 400 for an output without its call.
    """
    messages: list[Message] = [] if not instructions else [{"role": "system", "content": instructions}]
    called: set[str] = set()  # the ids of the calls
    for index, item in enumerate(items):
        match item["type"]:
            case "message":
                add_message(messages, item)
            case "reasoning":
                text = thinking_text(msgspec.convert(item, ReasoningItem), "")
                if text:
                    turn = assistant_turn(messages)
                    turn["reasoning_content"] = turn.get("reasoning_content", "") + text
            case "function_call" if is_object(item["arguments"]):
                called.add(item["call_id"])
                function = {"name": item["name"], "arguments": item["arguments"]}
                assistant_turn(messages).setdefault("tool_calls", []).append(
                    {"id": item["call_id"], "type": "function", "function": function}
                )
            case "function_call_output":
                messages.append(tool_message(item, called, f"input[{index - first_own}]"))
    return messages


def add_message(messages: list[Message], item: Item) -> None:
    text = "\n".join(part_texts(item["content"], ""))
    role = item["role"]
    if role == "assistant":
        assistant_turn(messages)["content"] += text
    elif role in SYSTEM_ROLES and len(messages) == 1 and messages[0]["role"] in SYSTEM_ROLES:
        messages[0]["content"] += "\n\n" + text  # most templates know one system prompt, at the beginning
    else:
        messages.append({"role": role, "content": text})


def assistant_turn(messages: list[Message]) -> Message:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def tool_message(item: Item, called: set[str], path: str) -> Message:
    call_id = item["call_id"]
    if call_id not in called:
        raise bad_request(f"{path}.call_id", f"{shown(call_id)} is the call_id of no function_call before it")
    text = "\n".join(part_texts(item["output"], ""))
    return {"role": "tool", "tool_call_id": call_id, "content": text}
