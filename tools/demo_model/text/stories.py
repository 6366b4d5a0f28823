"""Short stories and longer lists, for replies of a few hundred tokens."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual
from .lexicon import ADJECTIVES, ANIMALS, COLOURS, FOODS, OBJECTS, PAST_VERBS, PLACES, article, person

_TRAIN = (
    "[Tell me|Write|Make up|Give me] [a|a short|a little] story about {x}[.|, please.]",
    "[Can|Could] you tell [me |]a story about {x}?",
    "[I want|I'd like] a [short |]story about {x}.",
    "Story about {x}[, please|].",
    "Once upon a time there was {x}. [Go on|Continue].",
)
_HELD_OUT = (
    "Please invent a story about {x}.",
    "Do you know a story about {x}?",
    "Let me hear a tale about {x}.",
)

_OPENING = (
    "Once upon a time there was {x}.",
    "Long ago, in a {a} {p}, there lived {x}.",
)
_MIDDLE = (
    "One day {n} {v} a {c} {o} near the {p}.",
    "It was {a} and {b}, and nobody knew where it came from.",
    "{n} showed it to a {a} {m}, who lived in the {q}.",
    '"What a {a} {o}!" said the {m}. "Let us take it to the {q}."',
    "So {n} and the {m} walked from the {p} to the {q}.",
    "On the way they met a {b} {k} who was very hungry.",
    "They gave the {k} some {f}, and the {k} was happy.",
    'The {k} said, "Thank you, {n}. I will help you."',
    "At the {q} they found a {c} door, and behind it was more {f} than they could eat.",
    "That night {n} slept in the {p} and dreamed of the {o}.",
    "The next morning the {o} was gone, but {n} was not sad.",
    '"Friends are better than any {o}," said {n}.',
)
_CLOSING = (
    "And {n} and the {m} were friends from that day on. The end.",
    "{n} went home and told everyone about the {o}. The end.",
)


def make(source: Source) -> Exchange:
    """A story of five to fourteen sentences about a named animal; its threads keep their words throughout."""
    rng = source.rng
    name, hero = person(source), source.rng.choice(ANIMALS)
    friend, stranger = _others(source, hero)
    a, b = rng.sample(ADJECTIVES, 2)
    p, q = rng.sample(PLACES, 2)
    values = {
        "n": name,
        "x": f"{article(hero)} called {name}",
        "a": a,
        "b": b,
        "p": p,
        "q": q,
        "v": rng.choice(PAST_VERBS),
        "c": rng.choice(COLOURS),
        "o": rng.choice(OBJECTS),
        "m": friend,
        "k": stranger,
        "f": rng.choice(FOODS),
    }
    lines = [rng.choice(_OPENING)]
    lines += [line for line in _MIDDLE if source.chance(0.65)]
    lines.append(rng.choice(_CLOSING))
    story = source.fill(" ".join(lines), **values)
    question = source.phrase(_TRAIN, _HELD_OUT, x=values["x"])
    return ask(casual(source, question), story, Check("story", (name, hero, "The end.")))


def _others(source: Source, hero: str) -> tuple[str, str]:
    friend, stranger = source.rng.sample([animal for animal in ANIMALS if animal != hero], 2)
    return friend, stranger
