"""The bodies of `/v1/responses`, field by field: what is taken and in which range."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ..protocol import MAX_TOKEN, GenerationRequest

Parts: TypeAlias = str | list[dict[str, Any]]  # a text, or parts that the translation checks one by one


class MessageItem(Struct):
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class FunctionCallItem(Struct):
    call_id: Annotated[str, Meta(min_length=1)]
    name: Annotated[str, Meta(min_length=1)]
    arguments: str


class FunctionCallOutputItem(Struct):
    call_id: Annotated[str, Meta(min_length=1)]
    output: Parts


class ReasoningItem(Struct):
    """Thinking of an earlier answer: in `content`, or in `encrypted_content` where the client asked for that."""

    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None


class FunctionTool(Struct):
    """`strict` is false unless the client says so: arguments are then held to the schema as chat completions do it."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(Struct):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Struct):
    """`summary` changes nothing: the thinking itself is returned, as content of a reasoning item."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(GenerationRequest, kw_only=True):
    """`POST /v1/responses`, and without generating `POST /v1/responses/input_tokens`.

    `max_tool_calls` bounds tools that OpenAI runs, so here it changes nothing. The fields of `GenerationRequest` that
    are not OpenAI's mean what they mean in chat completions.
    """

    input: Parts | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1)] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    context_management: Any = None
    moderation: Any = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=MAX_TOKEN)] | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None
