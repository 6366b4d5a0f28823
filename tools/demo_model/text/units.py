"""Unit conversion by whole-number factors."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual

# (larger unit, smaller unit, factor, largest count of the larger unit, short names or none)
_UNITS: tuple[tuple[str, str, int, int], ...] = (
    ("kilometers", "meters", 1000, 60),
    ("meters", "centimeters", 100, 60),
    ("centimeters", "millimeters", 10, 99),
    ("kilograms", "grams", 1000, 60),
    ("tons", "kilograms", 1000, 60),
    ("liters", "milliliters", 1000, 60),
    ("euros", "cents", 100, 60),
    ("decades", "years", 10, 60),
    ("centuries", "years", 100, 60),
    ("hours", "minutes", 60, 12),
    ("minutes", "seconds", 60, 12),
    ("days", "hours", 24, 10),
    ("weeks", "days", 7, 12),
    ("years", "months", 12, 12),
    ("feet", "inches", 12, 12),
    ("yards", "feet", 3, 12),
    ("gallons", "quarts", 4, 12),
)
_SINGULAR = {"feet": "foot", "inches": "inch", "centuries": "century"}
_TRAIN = (
    "How many {to} [are|are there] in {n} {from}?",
    "Convert {n} {from} [to|into] {to}.",
    "[What is|What's] {n} {from} in {to}?",
    "{n} {from} [in|to] {to}[?|]",
    "How many {to} is {n} {from}?",
    "[Express|Write|Give me] {n} {from} in {to}.",
    "{n} {from} is how many {to}?",
    "Change {n} {from} [to|into] {to}.",
    "[I have|I need|I want|Take] {n} {from}. [How many|What is that in] {to}?",
    "[Say|Do you know|I want to know] how many {to} [are in|make|is] {n} {from}.",
    "[Make|Get] {n} {from} into {to}.",
    "How [many|much] {to} [do|does|will] {n} {from} [make|give]?",
    "[In|With] {n} {from}, how many {to} [are there|do we have]?",
)
_HELD_OUT = (
    "If I have {n} {from}, how many {to} is that?",
    "Please turn {n} {from} into {to}.",
    "Tell me how many {to} there are in {n} {from}.",
    "How much is {n} {from} in {to}?",
)


def make(source: Source) -> Exchange:
    """Larger to smaller unit, or back; decimal units are split by count, the others by phrasing."""
    large, small, factor, top = source.rng.choice(_UNITS)
    if factor in (10, 100, 1000):
        count, _ = source.draw(lambda: (source.rng.randint(1, top), factor))
    else:
        count = source.rng.randint(1, top)
    if source.chance(0.7):
        n, unit, result, target = count, large, count * factor, small
    else:
        n, unit, result, target = count * factor, small, count, large
    question = source.phrase(_TRAIN, _HELD_OUT, **{"n": n, "from": _named(n, unit), "to": target})
    answer = f"{n} {_named(n, unit)} [is|are]".replace("[is|are]", "is" if n == 1 else "are")
    return ask(
        casual(source, question),
        f"{answer} {result} {_named(result, target)}.",
        Check("all", (f"{result} {_named(result, target)}",)),
    )


def _named(count: int, unit: str) -> str:
    return unit if count != 1 else _SINGULAR.get(unit, unit[:-1])
