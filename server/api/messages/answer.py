"""Blocks of an answer as Anthropic's content blocks, how it ended, and what it took."""

from __future__ import annotations

from typing import Any

import msgspec

from ...parsing.call_ids import OPENAI, CallIds
from ...requests.generation import Generation
from ..blocks import Block, Blocks
from ..opaque import mark, seal

TOOL_USE_IDS = CallIds(prefix="toolu_")


def call_ids(of_model: CallIds) -> CallIds:
    """Where the model does not care how ids look, they look as Anthropic's."""
    return TOOL_USE_IDS if of_model == OPENAI else of_model


def signature(thinking: str, *, hidden: bool) -> str:
    """Opaque to the client. Thinking that it is not shown is in it, and comes back with it."""
    return seal(thinking) if hidden else mark(thinking)


def empty_block(block: Block) -> dict[str, Any]:
    """A content block as it begins in a stream."""
    match block.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "text":
            return {"type": "text", "text": ""}
        case "call":
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}


def content_block(block: Block, *, hide_thinking: bool) -> dict[str, Any]:
    match block.kind:
        case "reasoning":
            return {
                "type": "thinking",
                "thinking": "" if hide_thinking else block.text,
                "signature": signature(block.text, hidden=hide_thinking),
            }
        case "text":
            return {"type": "text", "text": block.text}
        case "call":
            return {**empty_block(block), "input": call_input(block.text)}


def call_input(arguments: str) -> dict[str, Any]:
    """The arguments as an object. Of a call that was cut off, or is no JSON, the text under a name that says so."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {"unparsed_arguments": arguments}


def stop_fields(answer: Blocks, *, context_ends_it: bool) -> dict[str, Any]:
    """`stop_reason` and `stop_sequence`; `context_ends_it`: at the limit of tokens the context is full."""
    reason, sequence = "end_turn", None
    match answer.finish_reason:
        case "length":
            reason = "model_context_window_exceeded" if context_ends_it else "max_tokens"
        case "abort":
            reason = "refusal"
        case "stop" if isinstance(answer.stop_reason, str):
            reason, sequence = "stop_sequence", answer.stop_reason
        case "stop" if answer.has_calls:
            reason = "tool_use"
    fields: dict[str, Any] = {"stop_reason": reason, "stop_sequence": sequence}
    if reason == "refusal":
        fields["stop_details"] = {
            "type": "refusal",
            "category": None,
            "explanation": "the server's operator ended the request",
        }
    return fields


def usage_fields(generation: Generation) -> dict[str, Any]:
    """Input that was read from the prefix cache counts apart. Nothing is charged for writing to it."""
    usage = generation.usage()
    fields: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "service_tier": "standard",
    }
    if usage.reasoning_tokens is not None:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields
