"""`POST /classify` and `/v1/classify`: the probability of every label for each input, and the likeliest label."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ....scheduler.messages import PoolingParams
from ...requests.pooled import PooledPrompt
from ...services import Services
from ..endpoint import check_model, read_request
from ..tokenize import json_response
from .inputs import read_inputs
from .protocol import ClassifyRequest
from .scoring import activation
from .work import head, known_info, numbers, pool, usage

DECODER = msgspec.json.Decoder(ClassifyRequest)


class Classify:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, ClassifyRequest.__struct_fields__)
        model = check_model(services, request.model)
        info = known_info(services, "classify")
        inputs = await read_inputs(services, request, request.input, info)
        params = PoolingParams(task="classify", activation=activation(request))
        pooled = await pool(services, scope, receive, request, inputs, params)
        if pooled is None:
            return
        labels = info.pooling.labels if info.pooling is not None else []
        data = [describe(index, prompt, labels) for index, prompt in enumerate(pooled.prompts)]
        body = {**head(scope, "classify", model), "data": data, "usage": usage(pooled)}
        await json_response(body)(scope, receive, send)


def describe(index: int, prompt: PooledPrompt, labels: list[str]) -> dict[str, Any]:
    probs = numbers(prompt.values)
    best = max(range(len(probs)), key=probs.__getitem__)
    return {"index": index, "label": labels[best], "probs": probs, "num_classes": len(probs)}
