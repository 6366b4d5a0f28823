"""Working with a list: its first, last or nth item, its reverse; well-known lists."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual
from .lexicon import ANIMALS, COLOURS, FOODS, MONTHS, OBJECTS, WEEKDAYS

_KNOWN = (
    ("days of the week", ", ".join(WEEKDAYS)),
    ("months of the year", ", ".join(MONTHS)),
    ("planets", "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune"),
    ("letters of the alphabet", ", ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
    ("seasons", "spring, summer, autumn, winter"),
    ("colours of the rainbow", "red, orange, yellow, green, blue, indigo, violet"),
    ("continents", "Africa, Antarctica, Asia, Australia, Europe, North America, South America"),
    ("oceans", "Arctic, Atlantic, Indian, Pacific, Southern"),
    ("even numbers up to 20", "2, 4, 6, 8, 10, 12, 14, 16, 18, 20"),
    ("odd numbers up to 20", "1, 3, 5, 7, 9, 11, 13, 15, 17, 19"),
    ("primes up to 30", "2, 3, 5, 7, 11, 13, 17, 19, 23, 29"),
    ("vowels", "a, e, i, o, u"),
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def make(source: Source) -> Exchange:
    """One question about a list."""
    pick = source.rng.random()
    if pick < 0.4:
        return _position(source)
    if pick < 0.65:
        return _reverse(source)
    name, answer = source.rng.choice(_KNOWN)
    question = source.phrase(
        (
            "[List|Name|Tell me|Give me|Write down|Say|Recite] the {n}[.|, please.]",
            "What are the {n}?",
            "[Can|Could] you [list|name] the {n}?",
            "[I need|I want|Show me|Do you know|What about] [the|all|all the] {n}[.|?]",
            "[The|All] {n}[?|, please.|.]",
            "List all [the |]{n}.",
        ),
        ("Which are the {n}?", "I would like to hear the {n}.", "Please list for me the {n}."),
        n=name,
    )
    return ask(casual(source, question), f"{answer}", Check("exact", (answer,)))


def _items(source: Source, low: int, high: int) -> tuple[str, ...]:
    rng = source.rng
    words = rng.choice((ANIMALS, FOODS, OBJECTS, COLOURS))
    return source.draw(lambda: tuple(rng.sample(words, rng.randint(low, high))))


def _position(source: Source) -> Exchange:
    items = _items(source, 3, 6)
    index = source.rng.randrange(-1, min(len(items), 5))
    word = "last" if index < 0 else _ORDINALS[index]
    question = source.phrase(
        (
            "[What is|What's|Which is] the {w} [item|word|thing] [in|of] [this list: |the list |]{x}?",
            "[Give|Tell] me the {w} [item|word] of {x}.",
            "List: {x}. [What is|Which is] the {w} [item|one|word]?",
            "The {w} of {x}?",
            "[From|Of|Among] {x}, [say|what is|give me|which is] the {w}[ one| item| word|][.|?]",
            "[My list|The list|I have|There is]: {x}. "
            "[Say|What is|Which is|I want] the {w}[ item| word| one|].",
            "[Say|Find|Show|Read] the {w}[ item| word| one|] [of|in] {x}.",
        ),
        (
            "In the list {x}, which one comes {w}?",
            "Which word stands {w} in {x}?",
            "Here is a list: {x}. Tell me the {w} item.",
        ),
        w=word,
        x=", ".join(items),
    )
    return ask(
        casual(source, question),
        f"The {word} item is {items[index]}.",
        Check("all", (f"is {items[index]}.",)),
    )


def _reverse(source: Source) -> Exchange:
    items = _items(source, 3, 6)
    question = source.phrase(
        (
            "Reverse [the list |this list: |]{x}.",
            "[Write|Say|Give me] {x} [backwards|in reverse].",
            "Reverse: {x}[.|]",
            "[Can|Could] you reverse {x}?",
            "[I need|Show me|Turn|Read] {x} [backwards|in reverse|in reverse order].",
            "{x}[ backwards| in reverse| reversed][?|.]",
            "[What is|Give me] the reverse [order |]of {x}[?|.]",
        ),
        ("Please reverse the order of {x}.", "I want {x} in reverse."),
        x=", ".join(items),
    )
    answer = ", ".join(reversed(items))
    return ask(casual(source, question), answer, Check("exact", (answer,)))
