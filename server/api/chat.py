"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ...scheduler.messages import EngineInfo
from ..requests.generation import Generation
from ..services import Services
from .collected import CollectedChoice, send_whole, wait_for_all
from .conversation import render
from .endpoint import Prompt, add_sequences, check_model, check_serving, envelope, read_request
from .errors import bad_request
from .logprobs import chat_entries
from .protocol import ChatRequest
from .streams import ChatStreamedChoice, StreamedGeneration, send_stream

DECODER = msgspec.json.Decoder(ChatRequest)


class ChatCompletions:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, ChatRequest.__struct_fields__)
        model = check_model(services, request.model)
        services.sampling.check(request)
        text = render(services.template, request)
        info = check_serving(services, request.n or 1)
        tokens = await services.tokenizer.encode_async(
            text, add_special_tokens=bool(request.add_special_tokens)
        )
        if not tokens:
            raise bad_request("messages", "the chat template made an empty prompt of them")
        prompt = Prompt(tokens, text)
        if request.stream:
            await self._stream(request, prompt, info, model, scope, receive, send)
        else:
            await self._answer(request, prompt, info, model, scope, receive, send)

    async def _stream(
        self,
        request: ChatRequest,
        prompt: Prompt,
        info: EngineInfo,
        model: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        services = self._services
        n = request.n or 1
        generation = StreamedGeneration(
            services.link,
            services.metrics,
            n,
            envelope=envelope(services, scope, "chatcmpl", "chat.completion.chunk", model),
            request=request,
            keep_alive_s=services.config.sse_keep_alive_s,
        )
        describe = partial(chat_entries, services.tokenizer)
        choices = [ChatStreamedChoice(generation, index, describe) for index in range(n)]
        max_tokens = add_sequences(services, generation, scope, request, prompt, info, [*choices])
        await send_stream(generation, scope, receive, send, max_tokens=max_tokens)

    async def _answer(
        self,
        request: ChatRequest,
        prompt: Prompt,
        info: EngineInfo,
        model: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        services = self._services
        n = request.n or 1
        generation = Generation(services.link, services.metrics, n)
        choices = [CollectedChoice(generation) for _ in range(n)]
        max_tokens = add_sequences(services, generation, scope, request, prompt, info, [*choices])
        if await wait_for_all(generation, receive, max_tokens=max_tokens):
            head = envelope(services, scope, "chatcmpl", "chat.completion", model)
            described = [self._describe(choice, index, request) for index, choice in enumerate(choices)]
            await send_whole(head, described, generation, scope, receive, send)

    def _describe(self, choice: CollectedChoice, index: int, request: ChatRequest) -> dict[str, Any]:
        logprobs = None
        if request.logprobs:
            logprobs = {"content": chat_entries(self._services.tokenizer, choice.entries), "refusal": None}
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.whole_text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "matched_stop": choice.stop_reason,
        }
