"""The HTTP application: which path leads to which endpoint, and through which middleware."""

from __future__ import annotations

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
from ..api.models import Models
from ..api.operations import Operations
from ..api.tokenize import Tokenization
from ..metrics.exposition import Exposition
from ..services import Services
from .gate import Gate

EXPOSED_HEADERS = ["X-Request-Id", "Retry-After", "x-queue-waiting", "x-queue-limit"]


def build_app(services: Services, exposition: Exposition) -> ASGIApp:
    config = services.config
    operations = Operations(services, exposition)
    models = Models(services)
    tokenization = Tokenization(services)
    routes = [
        Route("/v1/chat/completions", ChatCompletions(services), methods=["POST"]),
        Route("/v1/completions", Completions(services), methods=["POST"]),
        Route("/v1/models", models.all),
        Route("/v1/models/{name:path}", models.one),
        Route("/tokenize", tokenization.tokenize, methods=["POST"]),
        Route("/detokenize", tokenization.detokenize, methods=["POST"]),
        Route("/health", operations.health),
        Route("/ready", operations.ready),
        Route("/health_generate", operations.health_generate),
        Route("/v1/loads", operations.loads),
        Route("/load", operations.load),
        Route("/metrics", operations.metrics),
        Route("/version", operations.version),
        Route("/v1/version", operations.version),
        Route("/flush_cache", operations.flush_cache, methods=["POST"]),
        Route("/reset_prefix_cache", operations.flush_cache, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes, exception_handlers={ApiError: on_api_error, HTTPException: on_http_exception}
    )
    app.router.redirect_slashes = False
    # The gate stands outside of Starlette's own middleware, so that the `send` it notes for streams is the server's.
    gated = Gate(
        app,
        link=services.link,
        api_keys=config.api_keys,
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


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, wrong method) in OpenAI's form."""
    assert isinstance(error, HTTPException)
    what = {
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} does not answer {request.method}",
    }
    message = what.get(error.status_code, error.detail)
    return error_response(ApiError(error.status_code, message, headers=error.headers))
