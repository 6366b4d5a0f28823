"""What a client is told when its request cannot be served: OpenAI's error body, Anthropic's or TGI's."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from ..requests.sequence import Failure
from .caller import request_id, speaks_anthropic, speaks_tgi

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_exceeded",
    500: "server_error",
    503: "service_unavailable",
}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
TGI_TYPES = {429: "overloaded", 503: "overloaded"}
TGI_STATUS = {400: 422}  # what TGI answers to a body that it understood and will not serve
FAILURE_STATUS = {
    "queue_full": 429,
    "invalid": 400,
    "draining": 503,
    "engine_failed": 503,
    "internal": 500,
    "shutdown": 503,
}
MAX_MESSAGE_CHARS = 500
MAX_VALUE_CHARS = 80
MAX_PARAM_CHARS = 200
# Writes the beginning of a value without going through all of it.
SHORT = reprlib.Repr()
SHORT.maxlist = SHORT.maxdict = SHORT.maxtuple = 3
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = MAX_VALUE_CHARS


class ApiError(Exception):
    """A request that ends with HTTP `status`; `param` is the path of the field at fault, such as `messages[0].role`."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = one_line(message)
        self.param = None if param is None else one_line(param, MAX_PARAM_CHARS)
        self.headers = dict(headers or {})


def bad_request(param: str | None, message: str) -> ApiError:
    """A 400 about the field `param`; the message begins with its name."""
    name = one_line(param or "", MAX_PARAM_CHARS)
    return ApiError(400, f"{name}: {message}" if name else message, param=param)


def unavailable(message: str, *, retry_after_s: float = 1.0, close: bool = False) -> ApiError:
    """A 503 that says when to come back; `close` ends a kept-alive connection too."""
    headers = {"Retry-After": whole_seconds(retry_after_s)}
    if close:
        headers["Connection"] = "close"
    return ApiError(503, message, headers=headers)


def from_failure(failure: Failure) -> ApiError:
    """The HTTP form of what ended a sequence."""
    headers: dict[str, str] = {}
    if failure.code == "queue_full":
        headers["Retry-After"] = whole_seconds(failure.retry_after_s)
        headers["x-queue-waiting"] = str(failure.num_waiting)
        if failure.queue_limit:
            headers["x-queue-limit"] = str(failure.queue_limit)
    elif failure.code in ("draining", "engine_failed", "shutdown"):
        headers["Retry-After"] = whole_seconds(failure.retry_after_s)
    return ApiError(FAILURE_STATUS[failure.code], failure.message, headers=headers)


def whole_seconds(seconds: float) -> str:
    """Seconds rounded up, at least 1: the unit of Retry-After."""
    return str(max(1, math.ceil(seconds)))


def error_body(error: ApiError) -> bytes:
    """`{"error": {message, type, param, code}}`; `code` is the HTTP status."""
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": TYPES.get(
                    error.status, "invalid_request_error" if error.status < 500 else "server_error"
                ),
                "param": error.param,
                "code": error.status,
            }
        }
    )


def anthropic_error_body(error: ApiError, request_id: str) -> bytes:
    """`{"type": "error", "error": {type, message}, request_id}`."""
    kind = ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return msgspec.json.encode(
        {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
    )


def tgi_error_body(error: ApiError) -> bytes:
    """`{"error": message, "error_type"}`, with the four types that TGI's clients know."""
    kind = "validation" if error.status < 500 else "generation"
    return msgspec.json.encode({"error": error.message, "error_type": TGI_TYPES.get(error.status, kind)})


def error_response(error: ApiError, scope: Scope) -> Response:
    """In the form of the API whose path was called."""
    status = error.status
    if speaks_anthropic(scope):
        body = anthropic_error_body(error, request_id(scope))
    elif speaks_tgi(scope):
        body, status = tgi_error_body(error), TGI_STATUS.get(status, status)
    else:
        body = error_body(error)
    return Response(body, status, headers=error.headers, media_type="application/json")


async def on_api_error(request: Request, error: Exception) -> Response:
    """Starlette's hook for `ApiError`."""
    assert isinstance(error, ApiError)
    return error_response(error, request.scope)


def one_line(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Printable text on one line of at most `limit` characters: no error amplifies what a client sent."""
    head = " ".join(text[: 2 * limit].split())
    head = "".join(char if char.isprintable() else "?" for char in head)
    return head if len(head) <= limit else head[: limit - 1] + "…"


def shown(value: object) -> str:
    """A client's value, short enough to be repeated in an error."""
    text = f"`{value[:MAX_VALUE_CHARS]}`" if isinstance(value, str) else SHORT.repr(value)
    return one_line(text, MAX_VALUE_CHARS)
