"""Answering in JSON when told to."""

from __future__ import annotations

import json

from ..split import Source
from .dialogue import Check, Exchange, ask
from .extraction import subjects, told
from .facts import CAPITALS
from .lexicon import ANIMALS, COLOURS, FOODS, OBJECTS

_TRAIN = (
    "{p} [Answer|Reply|Respond] in JSON with the keys {k}.",
    "{p}\n[Give|Write|Return] [me |]a JSON object with [the keys |the fields |]{k}.",
    "Extract {k} as JSON[.|:] {p}",
    "[Turn|Convert] this into JSON with [the keys |]{k}: {p}",
    "{p}\nJSON with {k}[, please.|.|]",
    "Text: {p}\nKeys: {k}\nAnswer in JSON.",
    "[I need|I want|Show me|Find|Get] {k} [in|as] JSON[.|:] {p}",
    "{p} [Write|Put|Give] [this|it] as JSON with [keys |]{k}.",
    "Make JSON with [the keys |the fields |]{k} [from|out of] this[ text|]: {p}",
    "[Reply|Respond|Answer] [with|in] JSON[.|,] [Keys|Fields]: {k}. [Text|Facts]: {p}",
    "JSON[, please|] with {k}: {p}",
    "{p}\n\nWhat are {k}? [Answer|Reply] in JSON.",
    "A JSON object [of|with] [the facts |]{k}: {p}",
)
_HELD_OUT = (
    "Write the facts of this text as a JSON object with the keys {k}: {p}",
    "{p} Now reply with JSON that has the keys {k}.",
    "Please give me {k} in JSON form. {p}",
)
_SYSTEMS = (
    "Answer in JSON only.",
    "Reply only with JSON.",
    "You always answer with a JSON object.",
    "Output JSON.",
)


def make(source: Source) -> Exchange:
    """An object with the requested keys of a passage, a fact as an object, or a list as an array."""
    pick = source.rng.random()
    if pick < 0.6:
        return _from_passage(source)
    if pick < 0.8:
        return _array(source)
    return _capital(source)


def _from_passage(source: Source) -> Exchange:
    rng = source.rng
    described = subjects(source, 1)
    passage, facts = told(source, described, rng.choice((2, 3, 4)))
    kept = rng.sample(facts, rng.randint(1, len(facts)))
    values: dict[str, str | int] = {}
    if source.chance(0.6):
        values["name"] = described[0].name
    values.update({attribute.key: attribute.value for _, attribute in kept})
    if source.chance(0.3):
        values = dict(rng.sample(list(values.items()), len(values)))
    names = list(values)
    keys = ", ".join(names)
    style = rng.random()
    if style < 0.25:
        keys = ", ".join(f'"{name}"' for name in names)
    elif style < 0.5 and len(names) > 1:
        keys = ", ".join(names[:-1]) + " and " + names[-1]
    question = source.phrase(_TRAIN, _HELD_OUT).replace("{k}", keys).replace("{p}", passage)
    answer = json.dumps(values)
    return ask(
        question, answer, Check("json", (answer,)), rng.choice(_SYSTEMS) if source.chance(0.25) else None
    )


def _array(source: Source) -> Exchange:
    rng = source.rng
    if source.chance(0.4):
        values: list[object] = list(
            source.draw(lambda: tuple(rng.randint(0, 99) for _ in range(rng.randint(2, 6))))
        )
    else:
        words = rng.choice((ANIMALS, FOODS, OBJECTS, COLOURS))
        values = list(source.draw(lambda: tuple(rng.sample(words, rng.randint(2, 6)))))
    shown = ", ".join(map(str, values))
    if source.chance(0.5):
        question = source.phrase(
            (
                "[Write|Give me|Return] {x} as a JSON [array|list].",
                "Make a JSON [array|list] of {x}.",
                "[Turn|Convert] {x} into a JSON [array|list].",
            ),
            ("I need {x} in a JSON list.", "Put {x} into a JSON array."),
            x=shown,
        )
        answer = json.dumps(values)
    else:
        key = rng.choice(("items", "values", "list", "result", "data", "words", "entries", "things"))
        question = source.phrase(
            (
                '[Write|Give me|Return] {x} as JSON [with|under] the key "{k}".',
                "Make a JSON object with the key {k} that holds {x}.",
            ),
            ("I need {x} in JSON under the key {k}.", 'Put {x} into JSON with the key "{k}".'),
            x=shown,
            k=key,
        )
        answer = json.dumps({key: values})
    return ask(question, answer, Check("json", (answer,)))


def _capital(source: Source) -> Exchange:
    country, capital = source.rng.choice(CAPITALS)
    if source.chance(0.5):
        question = source.phrase(
            (
                "What is the capital of {c}? [Answer|Reply] in JSON with the keys country and capital.",
                "[Give|Return] the capital of {c} as JSON with country and capital.",
            ),
            (
                "Reply with JSON with the keys country and capital: which city is the capital of {c}?",
                "Name the capital of {c} in JSON with the keys country and capital.",
            ),
            c=country,
        )
        answer = json.dumps({"country": country, "capital": capital})
        return ask(question, answer, Check("json", (answer,)))
    question = source.phrase(
        ("[What is|What's] the capital of {c}?", "[Which|What] city is the capital of {c}?"),
        ("Which city serves as capital of {c}?",),
        c=country,
    )
    answer = json.dumps({"answer": capital})
    system = source.rng.choice(_SYSTEMS)[:-1] + source.rng.choice(
        ('. Use the key "answer".', ". The key is answer.")
    )
    return ask(question, answer, Check("json", (answer,)), system)
