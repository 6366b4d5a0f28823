"""Which drafter a configuration asks for: the one table of methods."""

from __future__ import annotations

from collections.abc import Callable

from ..scheduler.messages import SpeculativeConfig, SpeculativeMethod
from ..spec.interface import HostDrafter
from ..spec.ngram import NgramOptions, ngram_drafter
from .errors import ConfigurationError
from .speculation import Speculation


def open_speculation(config: SpeculativeConfig | None, num_slots: int) -> Speculation | None:
    """What drafts for `num_slots` slots; None if nothing is to. Raises ConfigurationError."""
    if config is None:
        return None
    make = DRAFTERS.get(config.method)
    if make is None:
        raise ConfigurationError(
            f"--speculative-config: method {config.method!r} is not available: use one of {', '.join(DRAFTERS)}"
        )
    try:
        drafter = make(config, num_slots)
    except ValueError as error:
        raise ConfigurationError(f"--speculative-config: {error}") from None
    return Speculation(
        num_slots, drafter, max_draft_tokens=config.num_speculative_tokens, adaptive=config.adaptive
    )


def open_ngram(config: SpeculativeConfig, num_slots: int) -> HostDrafter:
    return ngram_drafter(
        num_slots,
        NgramOptions(
            min_match=config.prompt_lookup_min,
            max_match=config.prompt_lookup_max,
            window=config.window,
            shared_pool=config.shared_pool,
        ),
    )


DRAFTERS: dict[SpeculativeMethod, Callable[[SpeculativeConfig, int], HostDrafter]] = {"ngram": open_ngram}
