"""The bodies of requests, field by field: what is taken, in which range, and what is refused rather than ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Raw, Struct

MAX_STOPS = 32
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 1024
MAX_MESSAGES = 10_000
MAX_TOOLS = 1024
MAX_PROMPTS = 2048
MAX_TEMPLATE_VARIABLES = 64
MAX_TOKEN = 2**31 - 1

StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
TokenCount: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Refused(Struct, kw_only=True):
    """Fields that other servers know and this one cannot honour yet: a 400 unless they ask for nothing.

    A field that nobody knows is passed over, as vLLM and SGLang do: clients add notes of their own.
    """

    allowed_token_ids: Any = None
    bad_words: Any = None
    bootstrap_host: Any = None
    chat_template: Any = None
    custom_params: Any = None
    ebnf: Any = None
    function_call: Any = None
    functions: Any = None
    guided_choice: Any = None
    guided_decoding_backend: Any = None
    guided_grammar: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    json_schema: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    lora_path: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    prompt_logprobs: Any = None
    regex: Any = None
    repetition_detection: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None
    stop_regex: Any = None
    stream_interval: Any = None
    structured_outputs: Any = None
    suffix: Any = None
    thinking_token_budget: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    vllm_xargs: Any = None
    web_search_options: Any = None


# What asks for nothing, beside null, false and empty containers.
NEUTRAL: dict[str, Any] = {"length_penalty": 1.0, "modalities": ["text"], "stream_interval": 1, "suffix": ""}


class GenerationRequest(Refused, kw_only=True):
    """What both completion endpoints share.

    `user`, `metadata`, `store`, `service_tier`, `safety_identifier`, `prompt_cache_key` and `request_id` are notes of
    the client's own and change nothing. `spaces_between_special_tokens` has no effect: no space is ever put there.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    max_tokens: TokenCount | None = None
    min_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: (
        Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIAS)]
        | None
    ) = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"\A[^@/\\\x00]+\Z")] | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    request_id: str | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """`POST /v1/completions`. `prompt` is str, [str], [int] or [[int]]; its own decoders tell them apart."""

    prompt: Raw
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0)] | None = None
    add_special_tokens: bool | None = None


class FunctionCall(Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Struct):
    function: FunctionCall
    id: str | None = None
    type: Literal["function"] | None = "function"


class Message(Struct):
    """The part of a message that is checked; templates get the whole object."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionDefinition(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    function: FunctionDefinition
    type: Literal["function"]


class ChatRequest(GenerationRequest, kw_only=True):
    """`POST /v1/chat/completions`.

    `tools` go to the template; with `tool_choice` "none" they do not. Under "auto" the model's text is returned as
    content, tool calls in it are not parsed yet. Any other choice would be a constraint, so it is refused.
    """

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)] | None = None
    chat_template_kwargs: (
        Annotated[dict[str, str | int | float | bool | None], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None
    ) = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: str | None = None
    include_reasoning: bool | None = None


class TokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /tokenize`: a prompt, or messages as the chat endpoint would render them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: (
        Annotated[dict[str, str | int | float | bool | None], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None
    ) = None


class DetokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None
