"""TGI's body, and the same wishes in the fields that /v1/completions knows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from ...frontend_config import FrontEndConfig
from ..errors import ApiError, bad_request, shown
from ..protocol import MAX_TOKEN, CompletionRequest, Penalty

DEFAULT_NEW_TOKENS = 100  # TGI's and its client's
# What this server cannot do, and the value that does not ask for it.
REFUSED: dict[str, Any] = {"typical_p": 1.0, "watermark": False, "best_of": 1, "adapter_id": None}
FIELD_NAMES = {
    "prompt": "inputs",
    "max_tokens": "parameters.max_new_tokens",
    "(prompt_)?logprobs": "parameters.top_n_tokens",
    "truncate_prompt_tokens": "parameters.truncate",
    r"response_format\.json_schema": "parameters.grammar.value",
    r"response_format\.(schema|value)": "parameters.grammar.value",
    "response_format": "parameters.grammar",
    r"(?!X-)(\w+)": r"parameters.\1",
}


class Grammar(Struct, frozen=True):
    """What the text must look like: `value` is a JSON Schema, a regular expression or `{name, schema}`."""

    type: Literal["json", "regex", "json_schema"]
    value: str | dict[str, Any]


class Parameters(Struct, frozen=True, kw_only=True):
    max_new_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKEN)] | None = None
    temperature: Annotated[float, Meta(gt=0, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKEN)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    typical_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    frequency_penalty: Penalty | None = None
    do_sample: bool | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None  # as wide as TGI's, 64 bits
    stop: list[Annotated[str, Meta(min_length=1)]] | None = None
    stop_sequences: list[Annotated[str, Meta(min_length=1)]] | None = None  # the older name
    return_full_text: bool | None = None
    truncate: Annotated[int, Meta(ge=1, le=MAX_TOKEN)] | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None
    watermark: bool | None = None
    top_n_tokens: Annotated[int, Meta(ge=0)] | None = None
    grammar: Grammar | None = None
    adapter_id: str | None = None

    @property
    def samples(self) -> bool:
        """As TGI decides: a field that shapes the distribution asks for a draw from it."""
        return bool(
            self.do_sample
            or (self.temperature is not None and self.temperature != 1.0)
            or self.top_k
            or (self.top_p is not None and self.top_p < 1.0)
        )


class TGIRequest(Struct, kw_only=True):
    """`POST /generate`, `/generate_stream` and `/`."""

    inputs: Annotated[str, Meta(min_length=1)]
    parameters: Parameters | None = None
    stream: bool | None = None


def as_completion(request: TGIRequest, *, stream: bool, config: FrontEndConfig) -> CompletionRequest:
    """What is asked, in other words. Raises a 400 for what this server cannot do."""
    wanted = request.parameters or Parameters()
    refuse(wanted, stream=stream)
    if wanted.top_n_tokens is not None and wanted.top_n_tokens > config.limits.max_logprobs:
        raise bad_request(
            "parameters.top_n_tokens",
            f"{wanted.top_n_tokens} alternatives are more than this server gives, {config.limits.max_logprobs} "
            "(--max-logprobs)",
        )
    described = stream or bool(wanted.details or wanted.decoder_input_details)
    return CompletionRequest(
        prompt=Raw(b""),
        stream=stream,
        max_tokens=wanted.max_new_tokens or DEFAULT_NEW_TOKENS,
        temperature=(wanted.temperature or 1.0) if wanted.samples else 0.0,
        top_k=wanted.top_k or 0,
        top_p=wanted.top_p or 1.0,
        min_p=0.0,
        repetition_penalty=wanted.repetition_penalty or 1.0,
        frequency_penalty=wanted.frequency_penalty,
        seed=None if wanted.seed is None else wanted.seed % 2**63,
        stop=[*(wanted.stop or ()), *(wanted.stop_sequences or ())],
        include_stop_str_in_output=True,
        logprobs=(wanted.top_n_tokens or 0) if described else None,
        prompt_logprobs=0 if wanted.decoder_input_details else None,
        truncate_prompt_tokens=wanted.truncate,
        response_format=None if wanted.grammar is None else response_format(wanted.grammar),
    )


def field_names(wanted: Parameters) -> dict[str, str]:
    """What the client calls the fields of the completion; see `fields_named`."""
    return FIELD_NAMES if wanted.stop else {"stop": "parameters.stop_sequences", **FIELD_NAMES}


def response_format(grammar: Grammar) -> dict[str, Any]:
    """The same demand as a chat would make it."""
    if grammar.type == "json_schema":
        return {"type": "json_schema", "json_schema": grammar.value}
    return {"type": grammar.type, "value": grammar.value}


def refuse(wanted: Parameters, *, stream: bool) -> None:
    """A wish that would be ignored is refused."""
    for name, nothing in REFUSED.items():
        value = getattr(wanted, name)
        if value is not None and value != nothing:
            raise unsupported(name, value)
    if wanted.decoder_input_details and stream:
        raise bad_request(
            "parameters.decoder_input_details", "are part of whole answers only: leave stream out"
        )


def unsupported(name: str, value: object) -> ApiError:
    return bad_request(
        f"parameters.{name}",
        f"{shown(value)} is not supported by this server; a wish that it would ignore is refused",
    )
