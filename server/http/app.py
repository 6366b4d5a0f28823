"""The HTTP application: which path leads to which endpoint, and through which middleware."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..api.chat import ChatCompletions
from ..api.completions import Completions
from ..api.errors import ApiError, error_response, on_api_error
from ..api.messages.endpoint import CountTokens, Messages
from ..api.models import Models
from ..api.native import Generate
from ..api.openapi import Description
from ..api.operations import Operations
from ..api.pooling.classify import Classify
from ..api.pooling.embeddings import Embeddings
from ..api.pooling.rerank import Rerank
from ..api.pooling.score import Score
from ..api.render import Rendering
from ..api.responses.endpoint import CreateResponse, StoredResponses
from ..api.surface import OPERATIONS, Method, Operation
from ..api.tgi import endpoint as tgi
from ..api.tokenize import Tokenization
from ..metrics.exposition import Exposition
from ..services import Services
from .gate import INTERNAL_ERROR, Gate

# ASGI applications, and functions that Starlette calls with a request.
Handlers: TypeAlias = Mapping[tuple[Method, str], Callable[..., Any]]

METRICS = "/metrics"
EXPOSED_HEADERS = ["X-Request-Id", "Retry-After", "x-queue-waiting", "x-queue-limit"]


def build_app(services: Services, exposition: Exposition) -> ASGIApp:
    config = services.config
    operations = Operations(services, exposition)
    models = Models(services)
    tokenization = Tokenization(services)
    rendering = Rendering(services)
    responses = StoredResponses(services)
    description = Description(services.version, config)
    rerank, score, classify = Rerank(services), Score(services), Classify(services)
    handlers: Handlers = {
        ("POST", "/v1/chat/completions"): ChatCompletions(services),
        ("POST", "/v1/completions"): Completions(services),
        ("POST", "/v1/messages"): Messages(services),
        ("POST", "/v1/messages/count_tokens"): CountTokens(services),
        ("POST", "/v1/responses"): CreateResponse(services),
        ("POST", "/v1/responses/input_tokens"): responses.input_tokens,
        ("GET", "/v1/responses/{id}"): responses.retrieve,
        ("DELETE", "/v1/responses/{id}"): responses.delete,
        ("POST", "/v1/responses/{id}/cancel"): responses.cancel,
        ("GET", "/v1/responses/{id}/input_items"): responses.input_items,
        ("POST", "/v1/embeddings"): Embeddings(services),
        ("POST", "/rerank"): rerank,
        ("POST", "/v1/rerank"): rerank,
        ("POST", "/v2/rerank"): Rerank(services, cohere_v2=True),
        ("POST", "/score"): score,
        ("POST", "/v1/score"): score,
        ("POST", "/classify"): classify,
        ("POST", "/v1/classify"): classify,
        ("GET", "/v1/models"): models.all,
        ("GET", "/v1/models/{name:path}"): models.one,
        ("POST", "/tokenize"): tokenization.tokenize,
        ("POST", "/detokenize"): tokenization.detokenize,
        ("GET", "/tokenizer_info"): tokenization.info,
        ("POST", "/v1/chat/completions/render"): rendering.chat,
        ("POST", "/v1/completions/render"): rendering.completion,
        ("POST", "/apply-template"): rendering.template,
        ("POST", "/"): tgi.Generate(services),
        ("POST", "/generate"): Generate(services),
        ("POST", "/generate_stream"): tgi.Generate(services, always_stream=True),
        ("GET", "/info"): tgi.Info(services).get,
        ("GET", "/health"): operations.health,
        ("GET", "/ready"): operations.ready,
        ("GET", "/health_generate"): operations.health_generate,
        ("GET", "/v1/loads"): operations.loads,
        ("GET", "/load"): operations.load,
        ("GET", "/metrics"): operations.metrics,
        ("GET", "/version"): operations.version,
        ("GET", "/v1/version"): operations.version,
        ("GET", "/openapi.json"): description.get,
        ("POST", "/flush_cache"): operations.flush_cache,
        ("POST", "/reset_prefix_cache"): operations.flush_cache,
    }
    app = Starlette(
        routes=routes_of(OPERATIONS, handlers),
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_exception,
            Exception: on_exception,
        },
    )
    app.router.redirect_slashes = False
    gated = Gate(
        app,
        link=services.link,
        api_keys=config.api_keys,
        open_paths=open_paths(open_metrics=config.open_metrics),
        root_path=config.root_path,
        request_id_headers=config.enable_request_id_headers,
    )
    if not config.allowed_origins:
        return gated
    return CORSMiddleware(
        gated,
        allow_origins=config.allowed_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )


def routes_of(operations: Sequence[Operation], handlers: Handlers) -> list[Route]:
    """A route for each operation, in their order. Where Starlette answers GET it answers HEAD too."""
    table = {(operation.method, operation.path) for operation in operations}
    assert table == set(handlers), f"in one of the two only: {sorted(table ^ set(handlers))}"
    return [
        Route(operation.path, handlers[operation.method, operation.path], methods=[operation.method])
        for operation in operations
    ]


def open_paths(*, open_metrics: bool) -> frozenset[str]:
    """What is answered without a key, and while the server drains."""
    found = {operation.path for operation in OPERATIONS if operation.open}
    return frozenset(found | {METRICS} if open_metrics else found)


async def on_exception(request: Request, error: Exception) -> Response:
    """An endpoint that broke before it answered; the gate notes why."""
    return error_response(INTERNAL_ERROR, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, wrong method) in OpenAI's form."""
    assert isinstance(error, HTTPException)
    what = {
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} does not answer {request.method}",
    }
    message = what.get(error.status_code, error.detail)
    return error_response(ApiError(error.status_code, message, headers=error.headers), request.scope)
