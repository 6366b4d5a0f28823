"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...requests.generation import Generation
from ...services import Services
from ..blocks import Blocks
from ..caller import request_id
from ..chat_plan import ChatPlan, add_chat_sequences, plan_chat
from ..collected import wait_for_all
from ..endpoint import read_request
from ..errors import ApiError
from ..field_names import fields_named
from ..streams import encode, send_stream
from .answer import call_ids, content_block, stop_fields, usage_fields
from .protocol import CountTokensRequest, MessagesRequest
from .stream import MessageStream
from .translate import FIELD_NAMES, chat_request, field_names

MESSAGES = msgspec.json.Decoder(MessagesRequest)
COUNT_TOKENS = msgspec.json.Decoder(CountTokensRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePlan:
    """A message that can be made. `head` is what it begins with, streamed or whole."""

    chat: ChatPlan
    head: dict[str, Any]
    hide_thinking: bool
    context_ends_it: bool  # fewer tokens fit the context than the client allows
    silent: bool  # the client wants the prompt cached, and no answer


class Messages:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        names = MessagesRequest.__struct_fields__
        request = await read_request(services, scope, receive, MESSAGES, names)
        plan = await self._plan(request, scope)
        if request.stream:
            await self._stream(plan, scope, receive, send)
        else:
            await self._answer(plan, scope, receive, send)

    async def _plan(self, request: MessagesRequest, scope: Scope) -> MessagePlan:
        with fields_named(field_names(request)):
            chat = await plan_chat(self._services, chat_request(request))
        prompt, context = len(chat.prompt.tokens), chat.info.max_model_len
        room = context - prompt
        if room < 1:
            # Clients that shorten a conversation by themselves know this sentence.
            raise ApiError(
                400, f"prompt is too long: {prompt} tokens > {context - 1} maximum", param="messages"
            )
        if request.max_tokens > room:
            chat = replace(chat, request=msgspec.structs.replace(chat.request, max_completion_tokens=room))
        return MessagePlan(
            chat=chat,
            head={
                "id": f"msg_{request_id(scope)}",
                "type": "message",
                "role": "assistant",
                "model": chat.model,
            },
            hide_thinking=request.thinking is not None and request.thinking.display == "omitted",
            context_ends_it=request.max_tokens > room,
            silent=request.max_tokens == 0,
        )

    def _add(self, plan: MessagePlan, generation: Generation, scope: Scope) -> tuple[Blocks, int]:
        """The answer to come, and how many tokens it may have."""
        answer = Blocks(generation, call_ids(plan.chat.call_ids).new, keep=not plan.silent)
        generation.counts_output = not plan.silent
        with fields_named(FIELD_NAMES):
            max_tokens = add_chat_sequences(self._services, generation, scope, plan.chat, [answer])
        return answer, max_tokens

    async def _stream(self, plan: MessagePlan, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        stream = MessageStream(
            services.link,
            services.metrics,
            head=plan.head,
            request_id=request_id(scope),
            hide_thinking=plan.hide_thinking,
            context_ends_it=plan.context_ends_it,
            keep_alive_s=services.config.sse_keep_alive_s,
        )
        stream.answer, max_tokens = self._add(plan, stream, scope)
        stream.answer.writer = stream
        await send_stream(stream, scope, receive, send, max_tokens=max_tokens)

    async def _answer(self, plan: MessagePlan, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        generation = Generation(services.link, services.metrics, 1)
        answer, max_tokens = self._add(plan, generation, scope)
        if await wait_for_all(generation, receive, max_tokens=max_tokens):
            body = {
                **plan.head,
                "content": [
                    content_block(block, hide_thinking=plan.hide_thinking) for block in answer.blocks
                ],
                **stop_fields(answer, context_ends_it=plan.context_ends_it),
                "usage": usage_fields(generation),
            }
            await Response(encode(body), media_type="application/json")(scope, receive, send)


class CountTokens:
    """An ASGI endpoint. It generates nothing."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        names = MessagesRequest.__struct_fields__  # clients count what they are about to send
        request = await read_request(services, scope, receive, COUNT_TOKENS, names)
        with fields_named(field_names(request)):
            plan = await plan_chat(services, chat_request(request))
        body = {"input_tokens": len(plan.prompt.tokens)}
        await Response(encode(body), media_type="application/json")(scope, receive, send)
