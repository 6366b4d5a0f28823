"""The bodies of requests, field by field: what is taken, in which range, and what is refused rather than ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Raw, Struct

MAX_TOKEN = 2**31 - 1

StopString: TypeAlias = Annotated[str, Meta(min_length=1)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
TokenCount: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TOKEN)]
CacheSalt: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^@/\\\x00]+$")]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class RepetitionDetectionFields(Struct, frozen=True, forbid_unknown_fields=True):
    """Ends the answer with reason `repetition` once it ends in `min_count` copies of a pattern; 0 as size: never."""

    max_pattern_size: Annotated[int, Meta(ge=0)] = 0
    min_pattern_size: Annotated[int, Meta(ge=0)] = 0
    min_count: Annotated[int, Meta(ge=0)] = 0


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's constraint: exactly one of the first six; the rest says how JSON is written.

    `disable_additional_properties` asks for nothing: an object that describes its members has no others here.
    """

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    disable_fallback: bool | None = None
    whitespace_pattern: str | None = None


class Refused(Struct, kw_only=True):
    """Fields that other servers know and this one cannot honour yet: a 400 unless they ask for nothing.

    A field that nobody knows is passed over, as vLLM and SGLang do: clients add notes of their own.
    """

    bootstrap_host: Any = None
    chat_template: Any = None
    custom_params: Any = None
    function_call: Any = None
    functions: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    logits_processors: Any = None
    logprob_token_ids: Any = None
    lora_path: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    stop_regex: Any = None
    suffix: Any = None
    use_beam_search: Any = None
    vllm_xargs: Any = None
    web_search_options: Any = None


# Of these, what some requests can honour all the same, in a type of their own.
HONOURED_IN_CHAT = frozenset({"prediction"})
# What asks for nothing, beside null, false and empty containers.
NEUTRAL: dict[str, Any] = {"length_penalty": 1.0, "modalities": ["text"], "suffix": ""}


class GenerationRequest(Refused, kw_only=True):
    """What both completion endpoints share.

    `user`, `metadata`, `store`, `safety_identifier`, `prompt_cache_key` and `request_id` are notes of the client's
    own and change nothing. `spaces_between_special_tokens` has no effect: no space is ever put there.
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
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stop: StopString | list[StopString] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: CacheSalt | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_json_object: bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None
    json_schema: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    grammar: str | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1)] | None = None
    bad_words: list[Annotated[str, Meta(min_length=1)]] | None = None
    repetition_detection: RepetitionDetectionFields | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKEN)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_metrics: bool | None = None
    stream_interval: Annotated[int, Meta(ge=1, le=MAX_TOKEN)] | None = None
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
    reasoning_content: str | None = None
    reasoning: str | None = None  # what vLLM calls it


class FunctionDefinition(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    function: FunctionDefinition
    type: Literal["function"]


class Prediction(Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's Predicted Outputs: the text that the answer is expected to be, or most of it."""

    type: Literal["content"]
    content: str | list[dict[str, Any]]


class ChatRequest(GenerationRequest, kw_only=True):
    """`POST /v1/chat/completions`.

    `tools` go to the template, with `tool_choice` "none" too unless the server was told to leave them out.
    `thinking_token_budget` -1 is no bound; it and `reasoning_effort` change nothing for a model that does not mark
    its thinking.
    """

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=MAX_TOKEN)] | None = None
    prediction: Prediction | None = None


class TokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /tokenize`: a prompt, or messages as the chat endpoint would render them."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = None


class DetokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None
