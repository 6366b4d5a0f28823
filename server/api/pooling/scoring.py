"""How well texts go together: by a cross-encoder that reads them as one, or by the cosine of their embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from starlette.types import Receive, Scope

from ....scheduler.messages import EngineInfo, PoolingParams
from ...requests.pooling import PooledRequest
from ...services import Services
from ..errors import ApiError
from .inputs import encode_texts
from .protocol import ClassifyRequest, PoolingRequest, RerankRequest, ScoreRequest
from .work import known_info, numbers, pool


def scoring_info(services: Services) -> EngineInfo:
    """The model, which can score. Raises a 400 for a classifier of several labels: none of them is the score."""
    info = known_info(services, "classify", "embed")
    if "embed" not in info.tasks and info.pooling is not None and len(info.pooling.labels) != 1:
        raise ApiError(
            400,
            f"this model tells {len(info.pooling.labels)} labels apart and scores no pairs, for which it would "
            "need one: use /classify",
            param="model",
        )
    return info


def activation(request: ClassifyRequest | RerankRequest | ScoreRequest) -> bool:
    """Whether the numbers go through sigmoid or softmax; the field has an old and a new name."""
    asked = request.activation if request.use_activation is None else request.use_activation
    return asked is not False


async def score_pairs(
    services: Services,
    scope: Scope,
    receive: Receive,
    request: RerankRequest | ScoreRequest,
    firsts: Sequence[str],
    seconds: Sequence[str],
    names: tuple[Sequence[str], Sequence[str]],
    *,
    second_limit: int | None = None,
) -> tuple[list[float], PooledRequest] | None:
    """A score for each of `seconds` with its counterpart in `firsts`, or with the only one; None if the client left.

    `names` are the paths of both sides' fields. `second_limit` cuts the second texts (tokens). Raises a 400.
    """
    info = scoring_info(services)
    pairs = [(firsts[index if len(firsts) > 1 else 0], second) for index, second in enumerate(seconds)]
    if "classify" in info.tasks:
        inputs = await encode_texts(services, request, pairs, info, names[1], second_limit=second_limit)
        params = PoolingParams(task="classify", activation=activation(request))
        pooled = await pool(services, scope, receive, request, inputs, params)
        return None if pooled is None else ([numbers(each.values)[0] for each in pooled.prompts], pooled)
    inputs = await encode_texts(services, request, firsts, info, names[0])
    inputs += await encode_texts(services, cut_seconds(request, second_limit), seconds, info, names[1])
    pooled = await pool(
        services, scope, receive, request, inputs, PoolingParams(task="embed", normalize=True)
    )
    if pooled is None:
        return None
    vectors = [numbers(each.values) for each in pooled.prompts]
    left, right = vectors[: len(firsts)], vectors[len(firsts) :]
    scores = [
        math.fsum(map(mul, left[index if len(left) > 1 else 0], vector)) for index, vector in enumerate(right)
    ]
    return scores, pooled


def cut_seconds(request: PoolingRequest, limit: int | None) -> PoolingRequest:
    """The request as it is for second texts of which no more than `limit` tokens count."""
    if limit is None:
        return request
    return PoolingRequest(
        truncate_prompt_tokens=limit,
        truncation_side=request.truncation_side,
        add_special_tokens=request.add_special_tokens,
    )
