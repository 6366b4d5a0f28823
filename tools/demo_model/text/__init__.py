"""The kinds of dialogue, their shares of the training text, and the endless seeded stream of dialogues."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..split import Source
from . import (
    arithmetic,
    copying,
    counting,
    extraction,
    facts,
    json_answers,
    lists,
    memory,
    persona,
    smalltalk,
    sorting,
    stories,
    tools,
    units,
    unknown,
)
from .dialogue import Exchange, MakeExchange

# kind: (how to make one exchange, its share of the dialogues)
KINDS: dict[str, tuple[MakeExchange, float]] = {
    "small talk": (smalltalk.make, 4),
    "arithmetic": (arithmetic.make, 18),
    "facts": (facts.make, 10),
    "unit conversion": (units.make, 4),
    "counting": (counting.make, 5),
    "sorting": (sorting.make, 12),
    "lists": (lists.make, 4),
    "copying": (copying.make, 8),
    "extraction": (extraction.make, 13),
    "memory": (memory.make, 7),
    "JSON answers": (json_answers.make, 13),
    "tool calls": (tools.make_call, 13),
    "tool results": (tools.make_answer, 3),
    "system prompt": (persona.make, 9),
    "not known": (unknown.make, 10),
    "stories": (stories.make, 2),
}

# Kinds that may come several times in a row before another question, because they need no system prompt.
_CHATTY = (
    "arithmetic",
    "facts",
    "unit conversion",
    "sorting",
    "lists",
    "small talk",
    "counting",
    "copying",
    "extraction",
)

_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "You are a helpful AI assistant.",
    "Be polite and helpful.",
    "Answer the questions of the user.",
    "You are Penstock Demo.",
    "Answer in short sentences.",
)


@dataclass(frozen=True)
class Dialogue:
    """A dialogue that ends with the answer of its last exchange, which `last.check` judges."""

    kind: str
    last: Exchange


def compose(source: Source, kind: str) -> Dialogue:
    """An exchange of `kind`, often after exchanges on other matters, often under a system prompt."""
    rng = source.rng
    last = KINDS[kind][0](source)
    history = []
    if last.system is None and source.chance(0.35):
        for _ in range(rng.choice((1, 1, 2, 3, 5))):
            earlier = KINDS[rng.choice(_CHATTY)][0](source)
            if "Nice to meet you" in str(earlier.messages[-1]["content"]):
                continue
            history += earlier.messages
    system = last.system
    if system is None and source.chance(0.3):
        system = rng.choice(_SYSTEMS)
    start = [] if system is None else [{"role": "system", "content": system}]
    return Dialogue(kind, replace(last, messages=[*start, *history, *last.messages], system=None))


def training_dialogues(seed: str) -> Iterator[Dialogue]:
    """The endless stream of training dialogues of `seed`."""
    rng = random.Random(seed)
    source = Source(rng, held_out=False)
    kinds = list(KINDS)
    shares = [KINDS[kind][1] for kind in kinds]
    while True:
        yield compose(source, rng.choices(kinds, shares)[0])


def held_out_questions(kind: str, count: int, seed: int) -> list[Dialogue]:
    """`count` held-out dialogues of `kind`; the last message of each is its reference answer."""
    source = Source(random.Random(f"held out {kind} {seed}"), held_out=True)
    return [compose(source, kind) for _ in range(count)]
