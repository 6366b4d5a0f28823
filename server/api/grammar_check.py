"""A grammar is proven before its request is submitted; what cannot be compiled in bounds is the client's to mend."""

from __future__ import annotations

from ...scheduler.messages import GrammarSpec
from ..requests.grammars import GrammarRefused, Grammars, GrammarUnavailable
from .errors import bad_request, unavailable


async def check_grammar(grammars: Grammars, spec: GrammarSpec, param: str) -> None:
    """Returns once `spec` is known to be sound. Raises a 400 naming the field `param`, or a 503."""
    try:
        await grammars.check(spec)
    except GrammarRefused as error:
        raise bad_request(param, error.message) from None
    except GrammarUnavailable as error:
        raise unavailable(error.message, retry_after_s=error.retry_after_s) from None
