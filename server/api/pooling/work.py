"""What the pooling endpoints do alike: submit their prompts, wait for the values, count what was used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope

from ....scheduler.messages import EngineInfo, PoolingParams, Task
from ...requests.generation import ClientGone, GenerationFailed
from ...requests.pooled import PooledPrompt
from ...requests.pooling import PooledRequest, window_of
from ...services import Services
from ...text.tokenizer import Encoded
from ..caller import REQUEST_ID
from ..endpoint import check_serving, check_task, header_priority
from ..errors import from_failure
from .protocol import PoolingRequest


def known_info(services: Services, *tasks: Task) -> EngineInfo:
    """The model, which can do one of `tasks`. Raises a 400 if it cannot, a 503 while there is none."""
    info = services.info
    check_task(info, *tasks)
    return info if info is not None else check_serving(services, 0)


async def pool(
    services: Services,
    scope: Scope,
    receive: Receive,
    request: PoolingRequest,
    inputs: Sequence[Encoded],
    params: PoolingParams,
) -> PooledRequest | None:
    """The inputs with their values; None if the client left. Raises the API's error if there will be none."""
    info = known_info(services, params.task)
    window = window_of(info)
    check_serving(services, min(window, len(inputs)), params.task)
    pooled = PooledRequest(services.link, services.metrics, window)
    pooled.log_as = scope[REQUEST_ID] if services.config.log_requests else None
    priority = request.priority if request.priority is not None else header_priority(scope) or 0
    cache_salt = services.isolation.salt(scope, request.cache_salt)
    for tokens, token_types in inputs:
        pooled.prompts.append(
            PooledPrompt(
                request_id=services.link.new_id(),
                prompt=tokens,
                params=PoolingParams(
                    task=params.task,
                    token_types=token_types,
                    dimensions=params.dimensions,
                    normalize=params.normalize,
                    activation=params.activation,
                ),
                owner=pooled,
                priority=priority,
                cache_salt=cache_salt,
            )
        )
    try:
        await pooled.run(receive)
    except GenerationFailed as error:
        raise from_failure(error.failure) from None
    except ClientGone:
        return None
    return pooled


def numbers(values: bytes) -> list[float]:
    """Raw float32 as Python's numbers."""
    return [*memoryview(values).cast("B").cast("f")]


def head(scope: Scope, prefix: str, model: str) -> dict[str, Any]:
    """What every answer begins with."""
    return {
        "id": f"{prefix}-{scope[REQUEST_ID]}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
    }


def usage(*parts: PooledRequest) -> dict[str, Any]:
    prompt_tokens = sum(part.tokens()[0] for part in parts)
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": {"cached_tokens": sum(part.tokens()[1] for part in parts)},
    }
