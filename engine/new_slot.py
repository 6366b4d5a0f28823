"""A slot's request as it was when the step was launched; the scheduler may change the original meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from ..scheduler.arrays import Int32
from ..scheduler.messages import PoolingParams, SamplingParams
from ..scheduler.plan import SlotInit
from ..scheduler.requests import Request
from .grammar.store import Grammar


@dataclass(frozen=True, slots=True)
class NewSlot:
    slot: int
    tokens: Int32
    num_prompt_tokens: int
    sampling: SamplingParams
    pooling: PoolingParams | None
    grammar: Grammar | None
    cache_salt: str
    prediction: Int32 | None


def new_slot(init: SlotInit) -> NewSlot:
    request = init.request
    return NewSlot(
        init.slot,
        request.tokens,
        request.num_prompt_tokens,
        request.sampling,
        request.pooling,
        grammar_of(request),
        request.cache_salt,
        request.prediction,
    )


def grammar_of(request: Request) -> Grammar | None:
    """The compiled grammar that a constrained request carries."""
    grammar = request.grammar
    assert (grammar is None) == (request.sampling.grammar is None), "a grammar is compiled before admission"
    assert grammar is None or isinstance(grammar, Grammar)
    return grammar
