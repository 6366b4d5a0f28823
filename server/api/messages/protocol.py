"""The bodies of `/v1/messages`, field by field: what is taken and in which range."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from ..protocol import CacheSalt, StopString, TokenCount

Content: TypeAlias = str | list[dict[str, Any]]  # a text, or blocks that the translation checks one by one


class InputMessage(Struct):
    """A turn. Consecutive turns of one role are one turn."""

    role: Literal["user", "assistant", "system"]
    content: Content


class TextBlock(Struct):
    text: str


class ThinkingBlock(Struct):
    """Thinking of an earlier answer. It is in `signature` where the client was not shown it."""

    thinking: str = ""
    signature: str | None = None


class ToolUseBlock(Struct):
    id: Annotated[str, Meta(min_length=1)]
    name: Annotated[str, Meta(min_length=1)]
    input: dict[str, Any]


class ToolResultBlock(Struct):
    tool_use_id: Annotated[str, Meta(min_length=1)]
    content: Content | None = None
    is_error: bool | None = None


class ToolReferenceBlock(Struct):
    tool_name: str


class ClientTool(Struct):
    """A tool of the client's. `defer_loading` and `input_examples` change nothing: the model sees every tool."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    """Whether the model thinks first, with how many tokens at most, and whether the client is shown it."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Struct):
    user_id: str | None = None


class CountTokensRequest(Struct, kw_only=True):
    """`POST /v1/messages/count_tokens`.

    `cache_control` changes nothing, wherever it stands: every prefix is cached. `cache_salt` and
    `chat_template_kwargs` are vLLM's.
    """

    model: str
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    system: Content | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None  # what output_config.format was called in its beta
    cache_control: dict[str, Any] | None = None
    container: Any = None
    mcp_servers: Any = None
    cache_salt: CacheSalt | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """`POST /v1/messages`. With `max_tokens` 0 the prompt is computed and cached, and the answer is empty.

    `seed`, `min_p`, `ignore_eos` and `priority` are vLLM's.
    """

    max_tokens: TokenCount
    stream: bool | None = None
    stop_sequences: list[StopString] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    ignore_eos: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
