"""Putting numbers and words in order."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual
from .lexicon import ANIMALS, FOODS

_TRAIN = (
    "Sort [these |the |][numbers|words][:|,] {x}[.|]",
    "Sort [the list |this list: |]{x}[.|]",
    "[Put|Place|Arrange] {x} in order.",
    "[Put|Arrange] these in order: {x}.",
    "Order [these|the following]: {x}.",
    "[Can|Could] you sort {x}?",
    "{x} in order[?|, please.]",
    "Write {x} in order.",
    "[I want|I have|Here are] {x}. [Sort|Order] them.",
    "[Make|Return|Write|Tell me] [a|the] sorted list [from|for|with] {x}.",
    "[Show|Give me|Tell me|Say|Bring me] {x} [in order|sorted][.|, please.]",
    "{x} sorted[?|.]",
    "[Which is|What is] the [right |]order of {x}?",
)
_HELD_OUT = (
    "I need {x} sorted.",
    "Please bring {x} into order.",
    "Show me {x} in the right order.",
    "Give me a sorted list of {x}.",
)
_TRAIN_DOWN = (
    "Sort {x} [from largest to smallest|in descending order|from high to low|in reverse order].",
    "[Put|Arrange] {x} in descending order.",
    "Order {x} from [largest to smallest|high to low].",
    "[Show me|Give me|I want|Write] {x} [from high to low|from largest to smallest|in descending order].",
    "[From high to low|From largest to smallest|In descending order]: {x}[.|]",
    "{x} sorted [from high to low|in descending order|from largest to smallest][.|]",
)
_HELD_OUT_DOWN = (
    "I need {x} sorted in descending order.",
    "Starting with the largest, sort {x} from high to low.",
)


def make(source: Source) -> Exchange:
    """Three to six numbers up or down, or three to five words by the alphabet."""
    rng = source.rng
    if source.chance(0.35):
        words = rng.choice((ANIMALS, FOODS))

        def distinct() -> tuple[str, ...]:
            while True:
                sample = tuple(rng.sample(words, rng.randint(3, 5)))
                if len({word[0] for word in sample}) == len(sample):
                    return sample

        items = source.draw(distinct)
        question = source.phrase(_TRAIN, _HELD_OUT, x=", ".join(items))
        answer = ", ".join(sorted(items))
        return ask(casual(source, question), answer, Check("exact", (answer,)))
    top = rng.choice((9, 20, 99, 99))
    numbers = source.draw(lambda: tuple(rng.sample(range(top + 1), rng.randint(3, 6))))
    down = source.chance(0.3)
    shown = ", ".join(map(str, numbers))
    if down:
        question = source.phrase(_TRAIN_DOWN, _HELD_OUT_DOWN, x=shown)
    else:
        question = source.phrase(_TRAIN, _HELD_OUT, x=shown)
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    return ask(casual(source, question), answer, Check("exact", (answer,)))
