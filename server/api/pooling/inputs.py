"""From the texts and tokens of a request to prompts that the model can read, or a 400 that names the input."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec

from ....scheduler.messages import EngineInfo
from ...services import Services
from ...text.tokenizer import Encoded
from ..body import decode
from ..errors import bad_request
from ..limits import check_length
from ..prompt_length import refuse_endless
from ..protocol import TokenId
from ..sampling import check_vocabulary
from .protocol import PoolingRequest

TEXT = msgspec.json.Decoder(str)
TEXTS = msgspec.json.Decoder(list[str])
TOKENS = msgspec.json.Decoder(list[TokenId])
TOKEN_LISTS = msgspec.json.Decoder(list[list[TokenId]])
WHITE = b" \t\r\n"


async def read_inputs(
    services: Services, request: PoolingRequest, raw: msgspec.Raw, info: EngineInfo, name: str = "input"
) -> list[Encoded]:
    """The field `name` in any of its four forms, told apart by its first characters. Raises a 400."""
    body = bytes(raw).strip(WHITE)
    if body.startswith(b'"'):
        return await encode_texts(services, request, [decode(TEXT, body, name)], info, [name])
    if not body.startswith(b"["):
        raise bad_request(
            name, "expected a text, a list of texts, a list of token ids or a list of such lists"
        )
    match body[1:].lstrip(WHITE)[:1]:
        case b"]":
            raise bad_request(name, "must not be empty")
        case b'"':
            texts = decode(TEXTS, body, name)
            check_length(services.config.limits, name, texts, "max_prompts")
            return await encode_texts(services, request, texts, info, numbered(name, len(texts)))
        case b"[":
            lists = decode(TOKEN_LISTS, body, name)
            check_length(services.config.limits, name, lists, "max_prompts")
            names = numbered(name, len(lists))
        case _:
            lists, names = [decode(TOKENS, body, name)], [name]
    limit = token_limit(request, info)
    for tokens, each in zip(lists, names, strict=True):
        check_vocabulary(each, tokens, info.vocab_size)
        if limit is not None and len(tokens) > limit:
            tokens[:] = tokens[-limit:] if request.truncation_side == "left" else tokens[:limit]
    return checked([Encoded(array("i", tokens), b"") for tokens in lists], info, names)


def numbered(name: str, count: int) -> list[str]:
    """The paths of a list's elements."""
    return [f"{name}[{index}]" for index in range(count)]


async def encode_texts(
    services: Services,
    request: PoolingRequest,
    inputs: Sequence[str | tuple[str, str]],
    info: EngineInfo,
    names: Sequence[str],
    *,
    second_limit: int | None = None,
) -> list[Encoded]:
    """Texts or pairs of them as tokens; `names` are the paths of the fields they come from. Raises a 400."""
    if request.truncate_prompt_tokens is None:
        for given, name in zip(inputs, names, strict=True):
            for text in (given,) if isinstance(given, str) else given[: 2 if second_limit is None else 1]:
                await refuse_endless(services, text, name)
    try:
        found = await services.tokenizer.encode_inputs_async(
            inputs,
            add_special_tokens=request.add_special_tokens is not False,
            limit=token_limit(request, info),
            cut=request.truncation_side or "right",
            second_limit=second_limit,
        )
    except ValueError as error:
        raise bad_request("truncate_prompt_tokens", str(error)) from None
    return checked(found, info, names)


def checked(inputs: list[Encoded], info: EngineInfo, names: Sequence[str]) -> list[Encoded]:
    for each, name in zip(inputs, names, strict=True):
        if not each.tokens:
            raise bad_request(name, "must not be empty")
        if len(each.tokens) > info.max_model_len:
            raise bad_request(
                name,
                f"it has {len(each.tokens)} tokens, this model reads {info.max_model_len}: "
                "shorten it, or let truncate_prompt_tokens cut it (-1: to what the model reads)",
            )
    return inputs


def token_limit(request: PoolingRequest, info: EngineInfo) -> int | None:
    """The tokens to which longer inputs are cut; None if they are not. Raises a 400."""
    limit = request.truncate_prompt_tokens
    if limit is None:
        return None
    if limit == -1:
        return info.max_model_len
    if not 1 <= limit <= info.max_model_len:
        raise bad_request(
            "truncate_prompt_tokens", f"expected -1, or 1 to {info.max_model_len}, which this model reads"
        )
    return limit
