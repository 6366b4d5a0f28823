"""SGLang's body, and the same wishes in the fields that /v1/completions knows."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

from ..errors import ApiError, bad_request, shown
from ..protocol import MAX_TOKEN, CompletionRequest, Penalty, StopString, TokenCount, TokenId

DEFAULT_NEW_TOKENS = 128  # SGLang's


class SamplingFields(Struct, frozen=True, kw_only=True):
    """`sampling_params`. Those whose type is `Any` are refused: a wish is not ignored."""

    max_new_tokens: TokenCount | None = None
    min_new_tokens: TokenCount | None = None
    stop: StopString | list[StopString] | None = None
    stop_token_ids: list[TokenId] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKEN)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    sampling_seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream_interval: Annotated[int, Meta(ge=1)] | None = None

    json_schema: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | dict[str, Any] | None = None

    beam_width: Any = None
    custom_params: Any = None
    stop_regex: Any = None


class SGLangRequest(Struct, kw_only=True):
    """`POST /generate`: one prompt or several, as text or as tokens."""

    text: str | list[str] | None = None
    input_ids: list[Any] | None = None  # token ids, or lists of them
    sampling_params: SamplingFields | list[SamplingFields] | None = None
    stream: bool | None = None
    return_logprob: bool | None = None
    logprob_start_len: Annotated[int, Meta(ge=-1)] | None = None
    top_logprobs_num: Annotated[int, Meta(ge=0)] | None = None
    return_text_in_logprobs: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    rid: str | None = None

    custom_logit_processor: Any = None
    image_data: Any = None
    audio_data: Any = None
    video_data: Any = None
    input_embeds: Any = None
    lora_path: Any = None
    return_hidden_states: Any = None
    session_params: Any = None
    token_ids_logprob: Any = None


REFUSED = (
    *("custom_logit_processor", "image_data", "audio_data", "video_data", "input_embeds", "lora_path"),
    *("return_hidden_states", "session_params", "token_ids_logprob"),
)
REFUSED_SAMPLING = ("beam_width", "custom_params", "stop_regex")


def refuse(request: SGLangRequest) -> None:
    """A 400 for every wish that could only be ignored."""
    for name in REFUSED:
        value = getattr(request, name)
        if value is not None and value is not False and value != []:
            raise unsupported(name, value)
    if request.logprob_start_len is not None and not request.return_logprob:
        raise bad_request("logprob_start_len", "needs return_logprob = true")
    if request.top_logprobs_num and not request.return_logprob:
        raise bad_request("top_logprobs_num", "needs return_logprob = true")
    if request.stream and scored_from(request) is not None:
        raise bad_request(
            "logprob_start_len", "the prompt's are part of whole answers only: leave stream out"
        )


def scored_from(request: SGLangRequest) -> int | None:
    """The first prompt position whose log probability is wanted; None for none."""
    start = request.logprob_start_len
    return None if not request.return_logprob or start is None or start < 0 else start


def as_completion(request: SGLangRequest, wanted: SamplingFields, path: str) -> CompletionRequest:
    """What is asked for one prompt, in other words; `path` is where the client wrote it. Raises a 400."""
    for name in REFUSED_SAMPLING:
        value = getattr(wanted, name)
        if value is not None:
            raise unsupported(f"{path}.{name}", value)
    top = request.top_logprobs_num or 0
    return CompletionRequest(
        prompt=Raw(b""),
        stream=bool(request.stream),
        n=wanted.n,
        max_tokens=DEFAULT_NEW_TOKENS if wanted.max_new_tokens is None else wanted.max_new_tokens,
        min_tokens=wanted.min_new_tokens,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        frequency_penalty=wanted.frequency_penalty,
        presence_penalty=wanted.presence_penalty,
        repetition_penalty=wanted.repetition_penalty,
        logit_bias=wanted.logit_bias,
        seed=wanted.sampling_seed,
        stop=wanted.stop,
        stop_token_ids=wanted.stop_token_ids,
        include_stop_str_in_output=wanted.no_stop_trim,
        ignore_eos=wanted.ignore_eos,
        skip_special_tokens=wanted.skip_special_tokens,
        stream_interval=wanted.stream_interval,
        priority=request.priority,
        logprobs=top if request.return_logprob else None,
        prompt_logprobs=None if scored_from(request) is None else top,
        json_schema=wanted.json_schema,
        regex=wanted.regex,
        ebnf=wanted.ebnf,
        structural_tag=wanted.structural_tag,
    )


def field_names(request: SGLangRequest, path: str) -> dict[str, str]:
    """What the client calls the fields of the completion whose sampling parameters it wrote at `path`."""
    return {
        "prompt": "text" if request.input_ids is None else "input_ids",
        "(prompt_)?logprobs": "top_logprobs_num",
        "max_tokens": f"{path}.max_new_tokens",
        "min_tokens": f"{path}.min_new_tokens",
        "seed": f"{path}.sampling_seed",
        r"(?!priority\b|X-)(\w+)": rf"{path}.\1",
    }


def unsupported(name: str, value: object) -> ApiError:
    return bad_request(
        name, f"{shown(value)} is not supported by this server; a wish that it would ignore is refused"
    )
