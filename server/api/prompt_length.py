"""Texts far too long for the model's context are refused before all of them is tokenized, which takes seconds."""

from __future__ import annotations

from ..services import Services
from .errors import ApiError

CHARS_PER_TOKEN = 16  # more than any text has that is not made to pack well
MARGIN = 64  # tokens by which the cut in the text may change their number, amply


class PromptTooLong(ApiError):
    """A 400. Its number of tokens is a lower bound."""


async def refuse_endless(services: Services, text: str, param: str) -> None:
    """Raises `PromptTooLong` if already the beginning of a long text has more tokens than the context.

    A long text whose beginning has few tokens is let through: its tokens will be counted.
    """
    info = services.info
    if info is None or len(text) <= CHARS_PER_TOKEN * (info.max_model_len + MARGIN):
        return
    beginning = text[: CHARS_PER_TOKEN * (info.max_model_len + MARGIN)]
    tokens = await services.tokenizer.encode_async(beginning, add_special_tokens=False)
    if len(tokens) > info.max_model_len + MARGIN:
        raise PromptTooLong(
            400,
            f"{param}: the prompt has more than {len(tokens) - MARGIN} tokens and this model's context holds "
            f"{info.max_model_len}, output included: shorten the prompt",
            param=param,
        )
