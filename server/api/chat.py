"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ..requests.generation import Generation
from ..services import Services
from .body import convert
from .chat_calls import ChatCalls
from .chat_plan import ChatPlan, add_chat_sequences, plan_chat
from .collected import CollectedChat, send_whole, wait_for_all
from .conversation import plain_text
from .endpoint import envelope, read_request
from .logprobs import chat_entries, prompt_entries
from .protocol import ChatRequest, Message
from .request_metrics import request_metrics
from .streams import ChatStreamedChoice, StreamedGeneration, send_stream

DECODER = msgspec.json.Decoder(ChatRequest)


class ChatCompletions:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, ChatRequest.__struct_fields__)
        plan = await plan_chat(services, request)
        if request.stream:
            await self._stream(plan, scope, receive, send)
        else:
            await self._answer(plan, scope, receive, send)

    async def _stream(self, plan: ChatPlan, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        n = plan.request.n or 1
        generation = StreamedGeneration(
            services.link,
            services.metrics,
            n,
            envelope=envelope(services, scope, "chatcmpl", "chat.completion.chunk", plan.model, plan.request),
            request=plan.request,
            keep_alive_s=services.config.sse_keep_alive_s,
        )
        describe = partial(chat_entries, services.tokenizer, as_ids=as_ids(plan.request))
        echo = echoed(plan.request)
        choices = [
            ChatStreamedChoice(generation, index, describe, calls_of(plan), echo) for index in range(n)
        ]
        max_tokens = add_chat_sequences(services, generation, scope, plan, choices)
        await send_stream(generation, scope, receive, send, max_tokens=max_tokens)

    async def _answer(self, plan: ChatPlan, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        n = plan.request.n or 1
        generation = Generation(services.link, services.metrics, n)
        choices = [CollectedChat(generation, calls_of(plan)) for _ in range(n)]
        max_tokens = add_chat_sequences(services, generation, scope, plan, choices)
        if await wait_for_all(generation, receive, max_tokens=max_tokens):
            head = envelope(services, scope, "chatcmpl", "chat.completion", plan.model, plan.request)
            described = [self._describe(choice, index, plan.request) for index, choice in enumerate(choices)]
            more: dict[str, Any] = {}
            if plan.request.prompt_logprobs is not None:
                scored = choices[0].prompt_entries
                more["prompt_logprobs"] = prompt_entries(
                    services.tokenizer, scored, plan.request.prompt_logprobs
                )
            if plan.request.return_token_ids:
                more["prompt_token_ids"] = plan.prompt.tokens.tolist()
                for choice, sequence in zip(described, generation.sequences, strict=True):
                    choice["token_ids"] = sequence.output.tolist()
            if plan.request.return_metrics:
                more["metrics"] = request_metrics(generation.sequences)
            await send_whole(head, described, generation, scope, receive, send, more=more)

    def _describe(self, choice: CollectedChat, index: int, request: ChatRequest) -> dict[str, Any]:
        logprobs = None
        if request.logprobs:
            content = chat_entries(self._services.tokenizer, choice.entries, as_ids=as_ids(request))
            logprobs = {"content": content, "refusal": None}
        message = choice.message()
        echo = echoed(request)
        if echo:
            message["content"] = echo + (message["content"] or "")
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.chat_finish_reason,
            "stop_reason": choice.stop_reason,
            "matched_stop": choice.stop_reason,
        }


def as_ids(request: ChatRequest) -> bool:
    """Are tokens named by their ids in log probabilities?"""
    return bool(request.return_tokens_as_token_ids)


def echoed(request: ChatRequest) -> str:
    """`echo`: what the reply's content begins with, the text of a last message that is the assistant's too."""
    last = request.messages[-1]
    if not request.echo or last.get("role") != "assistant":
        return ""
    return plain_text(convert(last, Message, "messages"), "messages")


def calls_of(plan: ChatPlan) -> ChatCalls:
    """Where one choice's tool calls go."""
    return ChatCalls(plan.call_ids.new, named=plan.named_call)
