"""An answer's blocks as output items, and the response object around them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from ...requests.generation import Generation
from ...requests.sequence import Failure, TokenLogprob
from ..blocks import Block, Blocks
from ..opaque import seal
from .items import Item, new_id
from .protocol import ResponsesRequest
from .translate import ENCRYPTED_REASONING, wants_logprobs

Status: TypeAlias = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ITEM_TYPES = {"reasoning": "reasoning", "text": "message", "call": "function_call"}
ERROR_CODES = {"queue_full": "rate_limit_exceeded", "invalid": "invalid_prompt"}
Describe: TypeAlias = Callable[[list[TokenLogprob]], list[dict[str, Any]]]


class OutputItems:
    """One item a block; its id stays the same from its first event to the stored response."""

    def __init__(self, request: ResponsesRequest, describe: Describe) -> None:
        self._encrypt = ENCRYPTED_REASONING in (request.include or ())
        self._describe = describe if wants_logprobs(request) else None
        self._ids: list[str] = []

    def id(self, index: int, block: Block) -> str:
        if index == len(self._ids):
            self._ids.append(new_id(ITEM_TYPES[block.kind]))
        return self._ids[index]

    def logprobs(self, entries: list[TokenLogprob]) -> list[dict[str, Any]]:
        return [] if self._describe is None else self._describe(entries)

    def part(self, block: Block) -> dict[str, Any]:
        """The one part of a message's or a reasoning item's content, as far as it has come."""
        if block.kind == "reasoning":
            return {"type": "reasoning_text", "text": block.text}
        return {
            "type": "output_text",
            "text": block.text,
            "annotations": [],
            "logprobs": self.logprobs(block.entries),
        }

    def opened(self, index: int, block: Block) -> Item:
        """The item as it begins in a stream."""
        item = self.item(index, Block(block.kind, call_id=block.call_id, name=block.name))
        item.pop("encrypted_content", None)
        return {**item, "status": "in_progress"} | ({} if block.kind == "call" else {"content": []})

    def item(self, index: int, block: Block) -> Item:
        item: Item = {
            "id": self.id(index, block),
            "type": ITEM_TYPES[block.kind],
            "status": "completed" if block.complete else "incomplete",
        }
        match block.kind:
            case "reasoning":
                item |= {"summary": [], "content": [self.part(block)]}
                if self._encrypt:
                    item["encrypted_content"] = seal(block.text)
            case "text":
                item |= {"role": "assistant", "content": [self.part(block)]}
            case "call":
                item |= {"call_id": block.call_id, "name": block.name, "arguments": block.text}
        return item

    def all(self, answer: Blocks) -> list[Item]:
        return [self.item(index, block) for index, block in enumerate(answer.blocks)]


def response_head(request: ResponsesRequest, *, id: str, model: str, store: bool) -> dict[str, Any]:
    """The response object before anything has come. What was asked is repeated as OpenAI does."""
    text, reasoning = request.text, request.reasoning
    return {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": bool(request.background),
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": request.service_tier if request.service_tier not in (None, "auto") else "default",
        "store": store,
        "temperature": request.temperature,
        "text": {
            "format": (text.format if text else None) or {"type": "text"},
            "verbosity": (text.verbosity if text else None) or "medium",
        },
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "user": request.user,
    }


def with_sampling(head: dict[str, Any], generation: Generation) -> dict[str, Any]:
    """The head with the sampling that is really used."""
    sampling = generation.sequences[0].sampling
    return {**head, "temperature": sampling.temperature, "top_p": sampling.top_p}


def finished(
    head: dict[str, Any], answer: Blocks, items: OutputItems, generation: Generation
) -> dict[str, Any]:
    """The response of an answer that has come to its end."""
    status: Status = "completed"
    details = None
    match answer.finish_reason:
        case "length":
            status, details = "incomplete", {"reason": "max_output_tokens"}
        case "repetition":
            status, details = "incomplete", {"reason": "repetition"}
        case "abort":
            status = "cancelled"
    return {
        **head,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": details,
        "output": items.all(answer),
        "usage": usage_fields(generation),
    }


def failed(
    head: dict[str, Any],
    failure: Failure,
    output: list[Item] | None = None,
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    error = {"code": ERROR_CODES.get(failure.code, "server_error"), "message": failure.message}
    return {**head, "status": "failed", "error": error, "output": output or [], "usage": usage}


def usage_fields(generation: Generation) -> dict[str, Any]:
    usage = generation.usage()
    thought = usage.reasoning_tokens or 0
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
