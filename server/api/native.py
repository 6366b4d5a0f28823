"""`POST /generate` means two things: SGLang's body has `text` or `input_ids`, TGI's has `inputs`."""

from __future__ import annotations

import msgspec
from starlette.types import Message, Receive, Scope, Send

from ..services import Services
from .body import read_body
from .caller import SGLANG_BODY
from .sglang import endpoint as sglang
from .tgi import endpoint as tgi

KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])
SGLANG_KEYS = frozenset({"text", "input_ids"})


class Generate:
    """Reads the body and hands it to the endpoint whose it is."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sglang = sglang.Generate(services)
        self._tgi = tgi.Generate(services, never_stream=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._services.config.limits.max_request_bytes)
        endpoint = self._sglang if is_sglangs(body) else self._tgi
        scope[SGLANG_BODY] = endpoint is self._sglang
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        await endpoint(scope, receive_again, send)


def is_sglangs(body: bytes) -> bool:
    """What is no JSON object is TGI's to refuse."""
    try:
        return not SGLANG_KEYS.isdisjoint(KEYS.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
