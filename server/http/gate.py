"""What every HTTP request passes first: its id, its key, the drain; and the net under an endpoint that breaks."""

from __future__ import annotations

import hmac
import logging
import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..api.caller import REQUEST_ID, speaks_anthropic
from ..api.errors import ApiError, error_response, shown, unavailable
from ..api.isolation import presented_key
from ..requests.generation import ClientGone
from ..requests.link import EngineLink

log = logging.getLogger(__name__)

INTERNAL_ERROR = ApiError(500, "internal server error", headers={"Connection": "close"})
CLIENT_ID = re.compile(rb"[\w.:\-]{1,128}", re.ASCII)


class Gate:
    """ASGI middleware. Everything but `open_paths` needs a key, if there are keys, and a server that is not leaving."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        link: EngineLink,
        api_keys: list[str],
        open_paths: frozenset[str],
        root_path: str,
        request_id_headers: bool,
    ) -> None:
        self._app = app
        self._link = link
        self._keys = [key.encode() for key in api_keys]
        self._open_paths = open_paths
        self._root_path = root_path
        self._request_id_headers = request_id_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = own_id(scope) or secrets.token_hex(16)
        scope[REQUEST_ID] = request_id
        started = ended = False

        async def send_marked(message: Message) -> None:
            nonlocal started, ended
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                started = True
                if self._request_id_headers:
                    headers = MutableHeaders(scope=message)
                    headers["X-Request-Id"] = request_id
                    if speaks_anthropic(scope):
                        headers["request-id"] = request_id
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, send_marked)
            else:
                await error_response(refusal, scope)(scope, receive, send_marked)
        except ClientGone:
            return
        except Exception:
            log.exception("request %s to %s broke", request_id, shown(scope["path"]))
            if not started:
                await error_response(INTERNAL_ERROR, scope)(scope, receive, send_marked)
            elif not ended:
                raise

    def _refusal(self, scope: Scope) -> ApiError | None:
        if scope["path"].removeprefix(self._root_path) in self._open_paths:
            return None
        if self._keys and not self._knows_key(scope):
            return ApiError(
                401,
                "a valid API key is required: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._link.draining:
            return unavailable("the server is shutting down", close=True)
        return None

    def _knows_key(self, scope: Scope) -> bool:
        """Compares with every key in constant time: how long it takes says nothing about any of them."""
        given = presented_key(scope)
        known = False
        for key in self._keys:
            known |= hmac.compare_digest(given, key)
        return known


def own_id(scope: Scope) -> str | None:
    """The client's X-Request-Id, if it is one that may stand in headers, ids and logs."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and CLIENT_ID.fullmatch(value):
            text: str = value.decode("ascii")
            return text
    return None
