"""Requests within the bounds that the server was started with, or a 400 that names the field and the option."""

from __future__ import annotations

from collections.abc import Sized

from msgspec import Struct

from ..limits import LimitOptions
from ..structured.errors import ConstraintError
from ..structured.schema import check_size
from .errors import bad_request
from .protocol import GenerationRequest

# field -> the option that bounds how many entries it may have
BOUNDED = {
    "stop_token_ids": "max_stop_token_ids",
    "allowed_token_ids": "max_allowed_token_ids",
    "bad_words": "max_bad_words",
    "logit_bias": "max_logit_bias",
    "messages": "max_messages",
    "documents": "max_messages",
    "tools": "max_tools",
    "chat_template_kwargs": "max_template_variables",
}


def check_limits(limits: LimitOptions, request: GenerationRequest) -> None:
    """Raises a 400."""
    if request.n is not None and request.n > limits.max_n:
        raise bad_request(
            "n", f"{request.n} choices are more than this server allows, {limits.max_n} (--max-n)"
        )
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        value = getattr(request, name, None)
        if isinstance(value, int) and value > limits.max_logprobs:
            raise bad_request(
                name,
                f"{value} alternatives are more than this server gives, {limits.max_logprobs} (--max-logprobs)",
            )
    check_lengths(limits, request)
    if request.stop is not None:
        stops = [request.stop] if isinstance(request.stop, str) else request.stop
        check_length(limits, "stop", stops, "max_stop_strings")
        for index, stop in enumerate(stops):
            if len(stop) > limits.max_stop_chars:
                raise bad_request(
                    f"stop[{index}]" if isinstance(request.stop, list) else "stop",
                    f"{len(stop)} characters are more than this server allows, {limits.max_stop_chars} "
                    "(--max-stop-chars)",
                )


def check_lengths(limits: LimitOptions, request: Struct) -> None:
    """The fields of `BOUNDED` that it has, and the schemas of its tools, enforced or not. Raises a 400."""
    for name, option in BOUNDED.items():
        check_length(limits, name, getattr(request, name, None), option)
    for index, tool in enumerate(getattr(request, "tools", None) or ()):
        function = tool.get("function")
        if isinstance(function, dict) and "parameters" in function:
            try:
                check_size(function["parameters"], f"tools[{index}].function.parameters", limits)
            except ConstraintError as error:
                raise bad_request(error.path, error.message) from None


def check_length(limits: LimitOptions, field: str, value: Sized | None, option: str) -> None:
    """A 400 if `value` has more entries than the option of this name allows."""
    if value is None:
        return
    bound: int = getattr(limits, option)
    if len(value) > bound:
        flag = option.replace("_", "-")
        raise bad_request(field, f"{len(value)} entries are more than this server allows, {bound} (--{flag})")
