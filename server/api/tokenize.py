"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..services import Services
from .conversation import render_async
from .endpoint import check_model, read_request
from .errors import bad_request
from .limits import check_lengths
from .protocol import DetokenizeRequest, TokenizeRequest
from .sampling import check_vocabulary

TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


def json_response(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


class Tokenization:
    """Both directions; neither needs the engine."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def tokenize(self, http: Request) -> Response:
        services = self._services
        names = TokenizeRequest.__struct_fields__
        request = await read_request(services, http.scope, http.receive, TOKENIZE, names)
        check_model(services, request.model)
        if (request.prompt is None) == (request.messages is None):
            raise bad_request("prompt", "either prompt or messages is required, and not both")
        check_lengths(services.config.limits, request)
        if request.messages is not None:
            text = await render_async(services, request)
            special = bool(request.add_special_tokens)
        else:
            text, special = request.prompt or "", request.add_special_tokens is not False
        tokens = (await services.tokenizer.encode_async(text, add_special_tokens=special)).tolist()
        info = services.info
        body: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": info.max_model_len if info else None,
            "tokens": tokens,
        }
        if request.return_token_strs:
            body["token_strs"] = [services.tokenizer.token_name(token) for token in tokens]
        return json_response(body)

    async def detokenize(self, http: Request) -> Response:
        services = self._services
        names = DetokenizeRequest.__struct_fields__
        request = await read_request(services, http.scope, http.receive, DETOKENIZE, names)
        check_model(services, request.model)
        info = services.info
        check_vocabulary("tokens", request.tokens, info.vocab_size if info else services.tokenizer.vocab_size)
        text = services.tokenizer.decode(
            request.tokens, skip_special_tokens=bool(request.skip_special_tokens)
        )
        return json_response({"prompt": text})

    async def info(self, http: Request) -> Response:
        """What tokenizer_config.json says, the chat template in force included."""
        services = self._services
        own = {"tokenizer_class": "PreTrainedTokenizerFast", "vocab_size": services.tokenizer.vocab_size}
        template = services.template.described
        return json_response({**own, **services.tokenizer.config, "chat_template": template})
