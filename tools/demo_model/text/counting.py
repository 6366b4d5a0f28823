"""Counting from one number to another, counting items, largest and smallest."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual
from .lexicon import ANIMALS, COLOURS, FOODS, OBJECTS

_TRAIN_UP = (
    "Count from {a} to {b}.",
    "Count [up |]from {a} [up |]to {b}[, please|].",
    "[Can|Could] you count from {a} to {b}?",
    "[List|Write|Give me|Show me|Print] [all |][the |]numbers from {a} to {b}.",
    "Numbers from {a} to {b}[.|, please.|]",
    "[List|Write] {a} to {b}.",
    "[Begin|Go] [at|from] {a} and [go|stop] [up |]at {b}.",
    "[All numbers|The numbers|Counting] from {a} to {b}[.|, please.]",
    "I [need|would like] the numbers from {a} to {b}.",
)
_HELD_OUT_UP = (
    "I want you to count from {a} to {b}.",
    "Say all the numbers from {a} to {b}.",
    "Start at {a} and count to {b}.",
)
_TRAIN_STEP = (
    "Count from {a} to {b} [by|in steps of] {s}.",
    "Count by {s} from {a} to {b}.",
    "[From {a} to {b}|{a} to {b}] in steps of {s}[.|, please.]",
    "[Go|Step] from {a} to {b} by {s}.",
    "[List|Write] the numbers from {a} to {b} in steps of {s}.",
)
_HELD_OUT_STEP = ("Going up by {s}, count from {a} to {b}.", "Please count in steps of {s} from {a} to {b}.")
_TRAIN_ITEMS = (
    "How many items are in this list: {x}?",
    "How many [things|words|items] [are there|do you see]: {x}?",
    "Count [the|these] [items|words|things]: {x}.",
    "How many: {x}?",
    "[Number|Count] of [items|words] in: {x}[.|]",
    "[My list|The list|List]: {x}. How many [items|words|things]?",
    "[Say|Do you know|I want to know] how many [items|things|words] [there are|I have]: {x}.",
)
_HELD_OUT_ITEMS = (
    "Tell me how many items this list has: {x}.",
    "Here is a list: {x}. How many items does it have?",
)
_TRAIN_EXTREME = (
    "[What is|What's|Which is] the {w} [of|number in|number of] {x}?",
    "[Which number is|Which is] the {w}: {x}?",
    "[Find|Give me|Tell me] the {w} [number |]of {x}.",
    "{w} of {x}?",
    "[Numbers|List|I have|Here are]: {x}. [Which is|What is|Say|Find] the {w}[ one| number|]?",
    "[Of|Among|From] {x}, [which one|what] is the {w}[ one| number|]?",
    "{x}: the {w}[ one| number|]?",
)
_HELD_OUT_EXTREME = ("Out of {x}, which number is the {w}?", "Look at {x} and tell me the {w} number.")


def make(source: Source) -> Exchange:
    """Count up, down, or in steps; count the items of a list; name the largest or smallest number."""
    pick = source.rng.random()
    if pick < 0.45:
        return _count_up(source)
    if pick < 0.75:
        return _count_items(source)
    return _extreme(source)


def _count_up(source: Source) -> Exchange:
    rng = source.rng

    def bounds() -> tuple[int, int, int]:
        step = rng.choice((1, 1, 1, 1, -1, 2, 5, 10))
        length = rng.randint(3, 30) if abs(step) == 1 else rng.randint(3, 12)
        if step == -1:
            start = rng.randint(length, 60) if length < 60 else length
            return start, start - length + 1, step
        start = rng.choice((1, 1, rng.randint(0, 99))) if step == 1 else rng.randint(0, 9) * step
        return start, start + (length - 1) * step, step

    a, b, step = source.draw(bounds)
    if abs(step) == 1:
        question = source.phrase(_TRAIN_UP, _HELD_OUT_UP, a=a, b=b)
    else:
        question = source.phrase(_TRAIN_STEP, _HELD_OUT_STEP, a=a, b=b, s=step)
    answer = ", ".join(str(n) for n in range(a, b + (1 if step > 0 else -1), step))
    return ask(casual(source, question), answer, Check("exact", (answer,)))


def _count_items(source: Source) -> Exchange:
    rng = source.rng
    words = rng.choice((ANIMALS, FOODS, OBJECTS, COLOURS))
    items = source.draw(lambda: tuple(rng.sample(words, rng.randint(2, 9))))
    question = source.phrase(_TRAIN_ITEMS, _HELD_OUT_ITEMS, x=", ".join(items))
    numbered = ", ".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    return ask(
        casual(source, question),
        f"{numbered}: {len(items)} items.",
        Check("all", (f": {len(items)} items.",)),
    )


def _extreme(source: Source) -> Exchange:
    rng = source.rng
    top = rng.choice((20, 99, 99))
    numbers = source.draw(lambda: tuple(rng.sample(range(top + 1), rng.randint(2, 5))))
    word = rng.choice(("largest", "smallest", "biggest", "highest", "lowest"))
    result = min(numbers) if word in ("smallest", "lowest") else max(numbers)
    question = source.phrase(_TRAIN_EXTREME, _HELD_OUT_EXTREME, w=word, x=", ".join(map(str, numbers)))
    question = question[0].upper() + question[1:]
    return ask(casual(source, question), f"The {word} is {result}.", Check("all", (f"is {result}.",)))
