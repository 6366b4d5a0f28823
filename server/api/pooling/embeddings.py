"""`POST /v1/embeddings`: a vector for each input, as numbers or as base64 of little-endian float32."""

from __future__ import annotations

import asyncio
import base64

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ....scheduler.messages import EngineInfo, PoolingParams
from ...requests.pooled import PooledPrompt
from ...services import Services
from ..endpoint import check_model, read_request
from ..errors import bad_request
from .inputs import read_inputs
from .protocol import EmbeddingRequest
from .work import head, known_info, numbers, pool, usage

DECODER = msgspec.json.Decoder(EmbeddingRequest)
# Writing this many numbers takes a few milliseconds: longer than the event loop should stand still.
NUMBERS_AT_ONCE = 20_000


class Embeddings:
    """An ASGI endpoint."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        services = self._services
        request = await read_request(services, scope, receive, DECODER, EmbeddingRequest.__struct_fields__)
        model = check_model(services, request.model)
        info = known_info(services, "embed")
        params = PoolingParams(
            task="embed",
            dimensions=dimensions(request, info),
            normalize=request.use_activation if request.normalize is None else request.normalize,
        )
        inputs = await read_inputs(services, request, request.input, info)
        pooled = await pool(services, scope, receive, request, inputs, params)
        if pooled is None:
            return
        body = {**head(scope, "embd", model), "usage": usage(pooled)}
        data = await describe(pooled.prompts, as_text=request.encoding_format == "base64")
        whole = msgspec.json.encode(body)[:-1] + b',"data":[' + b",".join(data) + b"]}"
        await Response(whole, media_type="application/json")(scope, receive, send)


def dimensions(request: EmbeddingRequest, info: EngineInfo) -> int:
    """How many components are kept, 0 = all. Raises a 400 for a size that the model was not made for.

    The first components of other models mean little by themselves: an answer would look right and compare badly.
    """
    wanted, pooling = request.dimensions, info.pooling
    if wanted is None or pooling is None:
        return 0
    size, allowed = pooling.embedding_size, pooling.matryoshka_dimensions
    if wanted > size:
        raise bad_request("dimensions", f"{wanted} are more than this model's embeddings have, {size}")
    if wanted == size or pooling.any_dimension or wanted in allowed:
        return wanted
    if allowed:
        sizes = ", ".join(map(str, sorted({*allowed, size})))
        raise bad_request("dimensions", f"{wanted} is not a size this model was made for: {sizes}")
    raise bad_request(
        "dimensions",
        f"this model does not say that its {size} components may be cut to {wanted}: leave dimensions out, or "
        "start the server with --hf-overrides '{\"is_matryoshka\": true}' if it was trained for it",
    )


async def describe(prompts: list[PooledPrompt], *, as_text: bool) -> list[bytes]:
    """The elements of `data` as JSON; other requests get their turn in between."""
    found = []
    written = 0
    for index, prompt in enumerate(prompts):
        values = prompt.values
        embedding = base64.b64encode(values).decode("ascii") if as_text else numbers(values)
        found.append(msgspec.json.encode({"object": "embedding", "index": index, "embedding": embedding}))
        written += len(values) // 4
        if written > NUMBERS_AT_ONCE:
            written = 0
            await asyncio.sleep(0)
    return found
