"""`POST /score` and `/v1/score`: how well pairs of texts go together."""

from __future__ import annotations

import msgspec
from starlette.types import Receive, Scope, Send

from ...services import Services
from ..endpoint import check_model, read_request
from ..errors import bad_request
from ..limits import check_length
from ..tokenize import json_response
from .inputs import numbered
from .protocol import ScoreRequest
from .scoring import score_pairs, scoring_info
from .work import head, usage

DECODER = msgspec.json.Decoder(ScoreRequest)


class Score:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, ScoreRequest.__struct_fields__)
        model = check_model(services, request.model)
        scoring_info(services)
        firsts, first_names = self._side(request, "text_1", "queries")
        seconds, second_names = self._side(request, "text_2", "documents")
        if len(firsts) not in (1, len(seconds)):
            raise bad_request(
                first_names[0].partition("[")[0],
                f"{len(firsts)} texts on this side and {len(seconds)} on the other make no pairs: "
                "give one, or as many",
            )
        names = (first_names, second_names)
        found = await score_pairs(services, scope, receive, request, firsts, seconds, names)
        if found is None:
            return
        scores, pooled = found
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        body = {**head(scope, "score", model), "data": data, "usage": usage(pooled)}
        await json_response(body)(scope, receive, send)

    def _side(self, request: ScoreRequest, name: str, other: str) -> tuple[list[str], list[str]]:
        """The texts of one side, and the paths of their fields. Raises a 400."""
        given = [each for each in (name, other) if getattr(request, each) is not None]
        if len(given) != 1:
            raise bad_request(
                name, f"is required, or {other}" if not given else f"and {other} are the same: give one"
            )
        texts = getattr(request, given[0])
        if isinstance(texts, str):
            return [texts], given
        if not texts:
            raise bad_request(given[0], "must not be empty")
        check_length(self._services.config.limits, given[0], texts, "max_prompts")
        return texts, numbered(given[0], len(texts))
