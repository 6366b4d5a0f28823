"""A valid request for every body of the HTTP surface, and an engine behind the front end that can answer them all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from penstock.scheduler.messages import PoolingInfo
from penstock.server.api.messages.protocol import CountTokensRequest, MessagesRequest
from penstock.server.api.pooling.protocol import (
    ClassifyRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
)
from penstock.server.api.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StructuredOutputs,
    TokenizeRequest,
)
from penstock.server.api.responses.protocol import ReasoningConfig, ResponsesRequest
from penstock.server.api.sglang.protocol import SamplingFields, SGLangRequest
from penstock.server.api.surface import OPERATIONS, Operation
from penstock.server.api.tgi.protocol import Parameters, TGIRequest

Body = dict[str, Any]

ALL_TASKS = {
    "tasks": ("generate", "embed", "classify"),
    "pooling": PoolingInfo(embedding_size=8, matryoshka_dimensions=[4], labels=["LABEL_0"]),
}
FEW = 3  # tokens
TURNS = [{"role": "user", "content": "Hello there"}]
CHAT_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
RESPONSES_TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
ANTHROPIC_TOOL = {"name": "f", "input_schema": {"type": "object"}}

VALID: dict[type[Struct], Body] = {
    ChatRequest: {"messages": TURNS, "max_tokens": FEW, "temperature": 0},
    CompletionRequest: {"prompt": "Hello there", "max_tokens": FEW, "temperature": 0},
    ResponsesRequest: {"input": "Hello there", "max_output_tokens": FEW, "temperature": 0},
    MessagesRequest: {"model": "tiny", "messages": TURNS, "max_tokens": FEW, "temperature": 0},
    CountTokensRequest: {"model": "tiny", "messages": TURNS},
    EmbeddingRequest: {"input": "Hello there"},
    RerankRequest: {"query": "Hello", "documents": ["one two", "three"]},
    ScoreRequest: {"text_1": "Hello", "text_2": ["one two", "three"]},
    ClassifyRequest: {"input": "Hello there"},
    TokenizeRequest: {"prompt": "Hello there"},
    DetokenizeRequest: {"tokens": [5, 6, 7]},
    SGLangRequest: {"text": "Hello", "sampling_params": {"max_new_tokens": FEW, "temperature": 0}},
    TGIRequest: {"inputs": "Hello", "parameters": {"max_new_tokens": FEW}},
}
# Objects inside: the body they are in, and the field they are in.
INSIDE: dict[type[Struct], tuple[type[Struct], str, Body]] = {
    StructuredOutputs: (CompletionRequest, "structured_outputs", {"choice": ["one", "two"]}),
    ReasoningConfig: (ResponsesRequest, "reasoning", {}),
    Parameters: (TGIRequest, "parameters", {"max_new_tokens": FEW}),
    SamplingFields: (SGLangRequest, "sampling_params", {"max_new_tokens": FEW, "temperature": 0}),
}
# The same with much in it, for mutations to bite on.
RICH: dict[type[Struct], Body] = {
    **VALID,
    ChatRequest: {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
        "tools": [CHAT_TOOL],
        "tool_choice": "auto",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": FEW,
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["zzz"],
        "logit_bias": {"5": 1},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    CompletionRequest: {
        "model": "tiny",
        "prompt": ["Hello", "there"],
        "n": 2,
        "max_tokens": FEW,
        "temperature": 1,
        "seed": 7,
        "logprobs": 2,
        "echo": True,
        "stop_token_ids": [5],
        "bad_words": ["you"],
        "repetition_detection": {"max_pattern_size": 2, "min_count": 3},
        "structured_outputs": {"regex": "a+"},
    },
    ResponsesRequest: {
        "model": "tiny",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "2"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        ],
        "instructions": "Be brief.",
        "tools": [RESPONSES_TOOL],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low"},
        "max_output_tokens": FEW,
        "store": False,
        "stream": True,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 1,
    },
    MessagesRequest: {
        "model": "tiny",
        "max_tokens": FEW,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "2"}]},
        ],
        "tools": [ANTHROPIC_TOOL],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "adaptive"},
        "stop_sequences": ["zzz"],
        "stream": True,
    },
    CountTokensRequest: {
        "model": "tiny",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
        "tools": [ANTHROPIC_TOOL],
        "output_config": {"effort": "low"},
    },
    EmbeddingRequest: {
        "input": [[5, 6], [7]],
        "encoding_format": "base64",
        "dimensions": 4,
        "truncate_prompt_tokens": 2,
    },
    RerankRequest: {
        "query": "Hello",
        "documents": ["one two", {"text": "three"}],
        "top_n": 1,
        "max_tokens_per_doc": 3,
    },
    TokenizeRequest: {"messages": TURNS, "tools": [CHAT_TOOL], "return_token_strs": True},
    SGLangRequest: {
        "input_ids": [[5, 6], [7]],
        "sampling_params": [{"max_new_tokens": FEW}, {"max_new_tokens": FEW, "stop": ["zzz"]}],
        "return_logprob": True,
        "top_logprobs_num": 1,
    },
    TGIRequest: {
        "inputs": "Hello",
        "parameters": {"max_new_tokens": FEW, "details": True, "stop": ["zzz"], "top_n_tokens": 2},
        "stream": True,
    },
}


def path_of(struct: type[Struct]) -> str:
    """The first endpoint that takes this body."""
    return next(operation.path for operation in OPERATIONS if struct in operation.bodies)


def with_field(struct: type[Struct], name: str, value: Any) -> tuple[type[Struct], Body]:
    """A valid body with this field in this object, and what body that is."""
    if struct in INSIDE:
        body, field, held = INSIDE[struct]
        return body, {**VALID[body], field: {**held, name: value}}
    return struct, {**VALID[struct], name: value}


def taking_bodies() -> Iterator[tuple[Operation, type[Struct]]]:
    for operation in OPERATIONS:
        for body in operation.bodies:
            yield operation, body


def as_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()
