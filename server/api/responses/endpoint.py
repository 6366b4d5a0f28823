"""`/v1/responses`: create (whole, streamed, in the background), and what can be done with a stored response."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ...requests.generation import Generation, GenerationFailed
from ...services import Services
from ..collected import wait_for_all
from ..endpoint import read_request
from ..errors import ApiError, bad_request, shown
from ..streams import encode, send_stream
from .items import Item
from .output import failed, finished
from .plan import Prepared, ResponsePlan, caller, not_found, plan_chat_of, plan_response, prepare
from .protocol import ResponsesRequest
from .store import StoredResponse
from .stream import ResponseStream

DECODER = msgspec.json.Decoder(ResponsesRequest)
NAMES = ResponsesRequest.__struct_fields__
MAX_PAGE, DEFAULT_PAGE = 100, 20


def json_answer(body: Any) -> Response:
    return Response(encode(body), media_type="application/json")


class CreateResponse:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, NAMES)
        plan = await plan_response(services, request, caller(services, scope))
        if request.background:
            await self._begin(plan, scope, receive, send)
        elif request.stream:
            await self._stream(plan, scope, receive, send)
        else:
            await self._answer(plan, scope, receive, send)

    async def _save(self, plan: ResponsePlan, response: dict[str, Any]) -> None:
        if plan.store:
            await self._services.response_store.put(plan.stored(response))

    async def _answer(self, plan: ResponsePlan, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        generation = Generation(services.link, services.metrics, 1)
        made = prepare(services, plan, generation, scope)
        if await wait_for_all(generation, receive, max_tokens=made.max_tokens):
            response = finished(made.head, made.answer, made.items, generation)
            await self._save(plan, response)
            await json_answer(response)(scope, receive, send)

    async def _stream(self, plan: ResponsePlan, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services

        async def save(response: dict[str, Any]) -> None:
            await self._save(plan, response)

        stream = ResponseStream(
            services.link, services.metrics, save=save, keep_alive_s=services.config.sse_keep_alive_s
        )
        made = prepare(services, plan, stream, scope)
        stream.start(made.head, made.answer, made.items)
        await send_stream(stream, scope, receive, send, max_tokens=made.max_tokens)

    # ---------------------------------------------------------------------------------------------- in the background

    async def _begin(self, plan: ResponsePlan, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        generation = Generation(services.link, services.metrics, 1)
        made = prepare(services, plan, generation, scope)
        await services.response_store.begin(plan.stored(made.head), services.config.frontend_id)
        services.background.start(made.head["id"], self._make(plan, generation, made))
        await json_answer({**made.head, "status": "queued"})(scope, receive, send)

    async def _make(self, plan: ResponsePlan, generation: Generation, made: Prepared) -> None:
        services = self._services
        try:
            async with generation.running(nobody_leaves, max_tokens=made.max_tokens):
                await generation.finished()
            response = finished(made.head, made.answer, made.items, generation)
        except GenerationFailed as error:
            response = failed(made.head, error.failure)
        await services.response_store.end(plan.stored(response), services.config.frontend_id)


async def nobody_leaves() -> Message:
    """The `receive` of a request whose client does not wait."""
    await asyncio.Event().wait()
    raise AssertionError


class StoredResponses:
    """Reading, cancelling and deleting responses, their input items, and counting an input's tokens."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def retrieve(self, http: Request) -> Response:
        if http.query_params.get("stream") in ("true", "1"):
            raise bad_request("stream", "a stored response is not streamed again: leave it out")
        return json_answer((await self._find(http)).response)

    async def delete(self, http: Request) -> Response:
        id, tenant = self._named(http)
        if not await self._services.response_store.delete(id, tenant):
            raise not_found(id)
        self._services.background.stop(id)
        return json_answer({"id": id, "object": "response", "deleted": True})

    async def cancel(self, http: Request) -> Response:
        """Only what is made in the background can be cancelled; what is over stays as it is."""
        id, tenant = self._named(http)
        stored = await self._services.response_store.cancel(id, tenant)
        if stored is None:
            raise not_found(id)
        if not stored.response["background"]:
            raise ApiError(400, f"{shown(id)} was not made in the background, so it cannot be cancelled")
        self._services.background.stop(id)
        return json_answer(stored.response)

    async def input_items(self, http: Request) -> Response:
        """A page of the items that were answered, the last first unless `order` is asc."""
        stored = await self._find(http)
        items = [*stored.history, *stored.input]
        order = http.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise bad_request("order", f"{shown(order)} is neither asc nor desc")
        if order == "desc":
            items.reverse()
        page, more = one_page(items, http.query_params.get("limit"), http.query_params.get("after"))
        return json_answer(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": more,
            }
        )

    async def input_tokens(self, http: Request) -> Response:
        """Nothing is generated."""
        services = self._services
        request = await read_request(services, http.scope, http.receive, DECODER, NAMES)
        plan, _, _ = await plan_chat_of(services, request, caller(services, http.scope))
        return json_answer({"object": "response.input_tokens", "input_tokens": len(plan.prompt.tokens)})

    def _named(self, http: Request) -> tuple[str, str]:
        return http.path_params["id"], caller(self._services, http.scope)

    async def _find(self, http: Request) -> StoredResponse:
        id, tenant = self._named(http)
        stored = await self._services.response_store.get(id, tenant)
        if stored is None:
            raise not_found(id)
        return stored


def one_page(items: list[Item], limit: str | None, after: str | None) -> tuple[list[Item], bool]:
    """(the page, whether more follow). Raises a 400."""
    size = DEFAULT_PAGE
    if limit is not None:
        size = int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 4 else 0
        if not 1 <= size <= MAX_PAGE:
            raise bad_request("limit", f"{shown(limit)} is not a number from 1 to {MAX_PAGE}")
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise bad_request("after", f"{shown(after)} is the id of no input item of this response")
        start = ids.index(after) + 1
    return items[start : start + size], len(items) > start + size
