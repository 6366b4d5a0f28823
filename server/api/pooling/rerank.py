"""`POST /rerank`, `/v1/rerank` and `/v2/rerank`: documents in order of relevance, as Jina and Cohere answer."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from ...requests.pooling import PooledRequest
from ...services import Services
from ..caller import REQUEST_ID
from ..endpoint import check_model, read_request
from ..errors import bad_request
from ..limits import check_length
from ..tokenize import json_response
from .inputs import numbered
from .protocol import Document, RerankRequest
from .scoring import score_pairs, scoring_info
from .work import usage

DECODER = msgspec.json.Decoder(RerankRequest)


class Rerank:
    """An ASGI endpoint. `cohere_v2`: documents are not sent back unless asked for."""

    def __init__(self, services: Services, *, cohere_v2: bool = False) -> None:
        self._services = services
        self._cohere_v2 = cohere_v2

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, RerankRequest.__struct_fields__)
        model = check_model(services, request.model)
        scoring_info(services)
        if not request.documents:
            raise bad_request("documents", "must not be empty")
        check_length(services.config.limits, "documents", request.documents, "max_prompts")
        texts = [each.text if isinstance(each, Document) else each for each in request.documents]
        found = await score_pairs(
            services,
            scope,
            receive,
            request,
            [request.query],
            texts,
            (["query"], numbered("documents", len(texts))),
            second_limit=request.max_tokens_per_doc,
        )
        if found is None:
            return
        scores, pooled = found
        body = {
            "id": f"rerank-{scope[REQUEST_ID]}",
            "model": model,
            "results": self._results(request, texts, scores),
            "usage": usage(pooled),
            "meta": self._meta(pooled),
        }
        await json_response(body)(scope, receive, send)

    def _results(self, request: RerankRequest, texts: list[str], scores: list[float]) -> list[dict[str, Any]]:
        """The best first; of equal ones the earlier."""
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        shown = not self._cohere_v2 if request.return_documents is None else request.return_documents
        results = []
        for index in order[: request.top_n or len(order)]:
            result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if shown:
                result["document"] = {"text": texts[index]}
            results.append(result)
        return results

    def _meta(self, pooled: PooledRequest) -> dict[str, Any]:
        """What Cohere's clients look for."""
        return {
            "api_version": {"version": "2" if self._cohere_v2 else "1"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": pooled.tokens()[0], "output_tokens": 0},
        }
