"""What a request would be sent to the model as, without running it: the prompt's text and its tokens."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..services import Services
from .caller import REQUEST_ID
from .chat_plan import plan_chat
from .completions import read_prompts
from .endpoint import Prompt, check_model, check_serving, read_request, truncated
from .grammar_check import check_grammar
from .protocol import ChatRequest, CompletionRequest
from .read_constraint import read_constraint
from .tokenize import json_response

CHAT = msgspec.json.Decoder(ChatRequest)
COMPLETION = msgspec.json.Decoder(CompletionRequest)


class Rendering:
    """The bodies are those of the generating endpoints, checked as they are there."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def chat(self, http: Request) -> Response:
        """`POST /v1/chat/completions/render`: `{request_id, model, prompt, token_ids}`."""
        plan = await plan_chat(self._services, await self._chat_request(http))
        return json_response(self._describe(http, plan.model, plan.prompt))

    async def template(self, http: Request) -> Response:
        """`POST /apply-template`, llama.cpp's: `{prompt}`."""
        plan = await plan_chat(self._services, await self._chat_request(http))
        return json_response({"prompt": self._text(plan.prompt)})

    async def completion(self, http: Request) -> Response:
        """`POST /v1/completions/render`: a list, one such object for each prompt."""
        services = self._services
        names = CompletionRequest.__struct_fields__
        request = await read_request(services, http.scope, http.receive, COMPLETION, names)
        model = check_model(services, request.model)
        services.sampling.check(request)
        constraint = read_constraint(request, services.config.limits)
        prompts = await read_prompts(services, request)
        info = check_serving(services, 0)
        if constraint is not None:
            await check_grammar(services.grammars, constraint.spec, constraint.param)
        return json_response(
            [self._describe(http, model, truncated(request, prompt, info)) for prompt in prompts]
        )

    async def _chat_request(self, http: Request) -> ChatRequest:
        names = ChatRequest.__struct_fields__
        return await read_request(self._services, http.scope, http.receive, CHAT, names)

    def _describe(self, http: Request, model: str, prompt: Prompt) -> dict[str, Any]:
        return {
            "request_id": http.scope[REQUEST_ID],
            "model": model,
            "prompt": self._text(prompt),
            "token_ids": prompt.tokens.tolist(),
        }

    def _text(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._services.tokenizer.decode(prompt.tokens.tolist(), skip_special_tokens=False)
