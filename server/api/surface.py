"""The HTTP surface as a table: which paths there are, what each takes, and what becomes of every field.

The application's routes, the paths that need no key, `/openapi.json` and docs/api.md all come from it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from .fields import FIELDS, IGNORED, OWN_NOTES
from .messages.protocol import CountTokensRequest, MessagesRequest
from .messages.translate import FOREIGN as NOT_ANTHROPICS
from .pooling.protocol import ClassifyRequest, EmbeddingRequest, RerankRequest, ScoreRequest
from .protocol import (
    HONOURED_IN_CHAT,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Refused,
    TokenizeRequest,
)
from .responses.protocol import ResponsesRequest
from .responses.translate import FOREIGN as NOT_OPENAIS
from .responses.translate import OUT_OF_PLACE
from .sglang.protocol import REFUSED as NOT_SGLANGS
from .sglang.protocol import REFUSED_SAMPLING, SamplingFields, SGLangRequest
from .shapes import SHAPES, Shape
from .tgi.protocol import REFUSED as NOT_TGIS
from .tgi.protocol import Parameters, TGIRequest

Method: TypeAlias = Literal["GET", "POST", "DELETE"]
Status: TypeAlias = Literal["required", "supported", "ignored", "refused"]

JSON = "application/json"
EVENTS = "text/event-stream"
TEXT = "text/plain"


class Query(Struct, frozen=True):
    """A parameter in the query string: a value of `values`, or a number within `range`; else any text."""

    name: str
    note: str
    values: tuple[str, ...] = ()
    range: tuple[int, int] | None = None


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path.

    `bodies` are the forms that its body may have, told apart by their required fields; `answers` are media types;
    an `open` one needs no API key.
    """

    method: Method
    path: str
    summary: str
    bodies: tuple[type[Struct], ...] = ()
    answers: tuple[str, ...] = (JSON,)
    query: tuple[Query, ...] = ()
    open: bool = False


class Field(Struct, frozen=True):
    """A field of a body or of an object in it: what becomes of it, its type, and its shape where that says more."""

    name: str
    status: Status
    type: Any
    note: str
    shape: Shape | None


def get(path: str, summary: str, **more: Any) -> Operation:
    return Operation(method="GET", path=path, summary=summary, **more)


def post(path: str, summary: str, *bodies: type[Struct], **more: Any) -> Operation:
    return Operation(method="POST", path=path, summary=summary, bodies=bodies, **more)


STREAMED = (JSON, EVENTS)
PAGE = (
    Query("limit", "Most items of one page; 20 by default.", range=(1, 100)),
    Query("order", "Oldest or newest item first; `desc` by default.", values=("asc", "desc")),
    Query("after", "The id of the item after which the page begins."),
)

OPERATIONS: tuple[Operation, ...] = (
    post("/v1/chat/completions", "Continues a conversation.", ChatRequest, answers=STREAMED),
    post("/v1/completions", "Continues prompts.", CompletionRequest, answers=STREAMED),
    post("/v1/responses", "Makes a response, as OpenAI's Responses API.", ResponsesRequest, answers=STREAMED),
    post("/v1/responses/input_tokens", "Counts the tokens of a response's input.", ResponsesRequest),
    get("/v1/responses/{id}", "A stored response."),
    Operation(method="DELETE", path="/v1/responses/{id}", summary="Deletes a stored response."),
    post("/v1/responses/{id}/cancel", "Ends a response that is made in the background."),
    get("/v1/responses/{id}/input_items", "What a stored response answers, page by page.", query=PAGE),
    post("/v1/messages", "Continues a conversation, as Anthropic's API.", MessagesRequest, answers=STREAMED),
    post("/v1/messages/count_tokens", "Counts the tokens of a conversation.", CountTokensRequest),
    post("/v1/embeddings", "Embeds texts.", EmbeddingRequest),
    post("/rerank", "Orders documents by their relevance to a query.", RerankRequest),
    post("/v1/rerank", "As /rerank.", RerankRequest),
    post("/v2/rerank", "As /rerank; documents come back only if asked for.", RerankRequest),
    post("/score", "How well pairs of texts go together.", ScoreRequest),
    post("/v1/score", "As /score.", ScoreRequest),
    post("/classify", "The probabilities of a classifier's labels.", ClassifyRequest),
    post("/v1/classify", "As /classify.", ClassifyRequest),
    get("/v1/models", "The names that are served, one model."),
    get("/v1/models/{name:path}", "One of these names."),
    post("/tokenize", "The tokens of a text or of a conversation.", TokenizeRequest),
    post("/detokenize", "The text of tokens.", DetokenizeRequest),
    get("/tokenizer_info", "The tokenizer's configuration."),
    post("/v1/chat/completions/render", "The prompt of a conversation, and its tokens.", ChatRequest),
    post("/v1/completions/render", "The tokens of prompts.", CompletionRequest),
    post("/apply-template", "The prompt of a conversation as text.", ChatRequest),
    post("/generate", "Continues prompts, as SGLang and TGI.", SGLangRequest, TGIRequest, answers=STREAMED),
    post("/generate_stream", "Continues a prompt, streamed as TGI does.", TGIRequest, answers=(EVENTS,)),
    post("/", "As /generate of TGI; streamed if the body says so.", TGIRequest, answers=STREAMED),
    get("/info", "The model and the limits, in TGI's words."),
    get("/health", "200 unless the engine is given up.", open=True),
    get("/ready", "200 if requests are served now, else 503.", open=True),
    get("/health_generate", "As /health, after a token or an embedding was made."),
    get("/v1/loads", "What the engines are doing."),
    get("/load", "How many requests are in progress."),
    get("/metrics", "Metrics for Prometheus. Needs no key with --open-metrics.", answers=(TEXT,)),
    get("/version", "The server's version."),
    get("/v1/version", "As /version."),
    get("/openapi.json", "This description."),
    post("/flush_cache", "Drops all cached prefixes that no request holds."),
    post("/reset_prefix_cache", "As /flush_cache."),
)

GENERAL = frozenset(Refused.__struct_fields__)
# The fields that are a 400 unless they ask for nothing.
REFUSED: dict[type[Struct], frozenset[str]] = {
    ChatRequest: GENERAL - HONOURED_IN_CHAT,
    CompletionRequest: GENERAL,
    ResponsesRequest: GENERAL.union(NOT_OPENAIS, OUT_OF_PLACE),
    CountTokensRequest: frozenset(NOT_ANTHROPICS),
    MessagesRequest: frozenset(NOT_ANTHROPICS),
    Parameters: frozenset(NOT_TGIS),
    SGLangRequest: frozenset(NOT_SGLANGS),
    SamplingFields: frozenset(REFUSED_SAMPLING),
}

# One of these, or more.
SOME: dict[type[Struct], tuple[str, ...]] = {
    ResponsesRequest: ("input", "instructions", "previous_response_id"),
}
# Of each of these pairs a body has one.
EITHER: dict[type[Struct], tuple[tuple[str, str], ...]] = {
    ScoreRequest: (("text_1", "queries"), ("text_2", "documents")),
    TokenizeRequest: (("prompt", "messages"),),
    SGLangRequest: (("text", "input_ids"),),
}


def bodies(operations: Sequence[Operation] = OPERATIONS) -> list[type[Struct]]:
    """All that these operations take, each once, in their order."""
    return list(dict.fromkeys(body for operation in operations for body in operation.bodies))


def fields_of(struct: type[Struct]) -> list[Field]:
    """In the order of the Struct, refused ones last."""
    refused = REFUSED.get(struct, frozenset())
    ignored = IGNORED.get(struct, frozenset())

    def status(field: msgspec.structs.FieldInfo) -> Status:
        if field.name in refused:
            return "refused"
        if field.name in ignored:
            return "ignored"
        return "required" if field.required else "supported"

    found = [
        Field(
            field.encode_name,
            status(field),
            field.type,
            OWN_NOTES.get((struct, field.name)) or FIELDS.get(field.name, ""),
            SHAPES.get((struct, field.name)),
        )
        for field in msgspec.structs.fields(struct)
    ]
    return sorted(found, key=lambda field: field.status == "refused")


def parts_of(struct: type[Struct]) -> Iterator[type[Struct]]:
    """The objects that this one may hold, theirs after each; refused fields hold nothing."""
    for field in fields_of(struct):
        if field.status == "refused":
            continue
        parts = structs_in(field.type) if field.shape is None else iter(field.shape.parts)
        for part in parts:
            yield part
            yield from parts_of(part)


def structs_in(type_: Any) -> Iterator[type[Struct]]:
    if isinstance(type_, type) and not isinstance(type_, types.GenericAlias) and issubclass(type_, Struct):
        yield type_
    for part in get_args(type_):
        if typing.get_origin(type_) is not Literal:
            yield from structs_in(part)


def described(operations: Sequence[Operation] = OPERATIONS) -> list[type[Struct]]:
    """All bodies, then all objects in them, each once."""
    found = bodies(operations)
    return list(dict.fromkeys([*found, *(part for body in found for part in parts_of(body))]))
