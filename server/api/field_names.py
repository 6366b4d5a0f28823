"""Errors of a request that was made from another: they name the field that the client wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .errors import ApiError


@contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Re-raises an `ApiError` under the client's field names.

    `names` maps patterns of the inner request's field paths, matched at the start, to what the client calls them.
    """
    try:
        yield
    except ApiError as error:
        raise renamed(error, names) from None


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    if error.param is None:
        return error
    for pattern, name in names.items():
        param, found = re.subn(rf"\A{pattern}(?![\w])", name, error.param, count=1)
        if found:
            message = error.message
            if message.startswith(error.param):
                message = param + message[len(error.param) :]
            return ApiError(error.status, message, param=param, headers=error.headers)
    return error
