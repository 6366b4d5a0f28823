"""The bodies of requests that read prompts: embeddings, reranking, scores and classes, field by field."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from ..protocol import MAX_TOKEN, CacheSalt


class PoolingRequest(Struct, kw_only=True):
    """What all of them share. `user` and `request_id` are notes of the client's own and change nothing.

    `truncate_prompt_tokens` cuts longer inputs to so many tokens, special ones included; -1: to what the model reads.
    Without it they are a 400. `truncation_side` is the side that loses them, the right one by default.
    """

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_TOKEN)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: CacheSalt | None = None
    user: str | None = None
    request_id: str | None = None


class EmbeddingRequest(PoolingRequest, kw_only=True):
    """`POST /v1/embeddings`. `input` is str, [str], [int] or [[int]].

    `dimensions` keeps the first components of each embedding, which then is brought to unit length again; only models
    that declare it may be cut. `normalize` (also `use_activation`) decides about the length, else the checkpoint does.
    """

    input: Raw
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_TOKEN)] | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    embed_dtype: Literal["float32"] | None = None
    endianness: Literal["native", "little"] | None = None


class ClassifyRequest(PoolingRequest, kw_only=True):
    """`POST /classify`. `input` as for embeddings. Without `use_activation` the numbers before sigmoid or softmax."""

    input: Raw
    use_activation: bool | None = None
    activation: bool | None = None


class ScoreRequest(PoolingRequest, kw_only=True):
    """`POST /v1/score`: each of one side with its counterpart, or one with all. The sides have two names each."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    use_activation: bool | None = None
    activation: bool | None = None


class Document(Struct):
    """A document as an object; fields beside its text are passed over."""

    text: str


class RerankRequest(PoolingRequest, kw_only=True):
    """`POST /v1/rerank`, as Jina and Cohere have it: the documents in order of their relevance to `query`.

    `top_n` keeps the best, 0 or none all. Documents come back with their scores unless `return_documents` is false,
    on Cohere's `/v2/rerank` only if it is true. `max_tokens_per_doc` cuts each document.
    """

    query: str
    documents: list[str | Document]
    top_n: Annotated[int, Meta(ge=0, le=MAX_TOKEN)] | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: Annotated[int, Meta(ge=1, le=MAX_TOKEN)] | None = None
    use_activation: bool | None = None
    activation: bool | None = None
