"""Repeating words, codes, sentences and whole paragraphs exactly."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask
from .lexicon import ADJECTIVES, ANIMALS, OBJECTS, TOWNS, code, made_up_word, sentence

_TRAIN = (
    "[Repeat|Copy|Say|Write|Echo|Print][:|] {x}",
    "[Repeat|Copy|Echo] [this|the following|exactly this|after me|this text|this line]: {x}",
    "[Please |]repeat [exactly |]what I say: {x}",
    "[Write|Say] [this|the following] [again|exactly|back to me]: {x}",
    "[Can|Could] you repeat this[ for me|]? {x}",
    '[Repeat|Copy|Say|Write|Echo] "{x}"',
    "{x}\n[Repeat|Copy] [the text|the line|what is written] above.",
    "[Type|Write down|Recite|Return] [this|this text|the text|these words]: {x}",
    "[Reply|Answer] with [exactly |]this[ text|]: {x}",
    "Your [answer|reply] must be: {x}",
    "Here is a [line|text|sentence]. [Repeat|Copy] it: {x}",
    "[Just|Now|Please] [say|write|copy|repeat]: {x}",
    "[Tell me|Give me|Show me] [this|this text|the same text|these words][ again|]: {x}",
    '[I want|I need|You have] to [hear|see|read|write] "{x}"',
    "The text is: {x}\n[Copy|Repeat|Write] it.",
    "What I say, you say: {x}",
)
_HELD_OUT = (
    "Give this back to me word for word: {x}",
    "Now please copy out this text: {x}",
    'I would like you to say "{x}"',
    "Echo these words back to me: {x}",
)
_TRAIN_TIMES = (
    "[Say|Write|Repeat|Print] {x} {k} times.",
    '[Say|Write|Repeat] "{x}" {k} times.',
    "[Say|Write] the word {x} {k} times.",
)
_HELD_OUT_TIMES = ("I want you to say {x} {k} times.", "Please write {x} exactly {k} times.")


def make(source: Source) -> Exchange:
    """An exact copy, or one word several times."""
    rng = source.rng
    if source.chance(0.12):
        word = made_up_word(source) if source.chance(0.5) else source.rng.choice(OBJECTS)
        count = rng.randint(2, 9)
        answer = " ".join([word] * count)
        return ask(
            source.phrase(_TRAIN_TIMES, _HELD_OUT_TIMES, x=word, k=count), answer, Check("exact", (answer,))
        )
    text = passage(source)
    return ask(source.phrase(_TRAIN, _HELD_OUT, x=text), text, Check("exact", (text,)))


def passage(source: Source) -> str:
    """Something to copy: a sentence, some words, a code, a line of symbols, or a paragraph."""
    rng = source.rng
    pick = rng.random()
    if pick < 0.3:
        return sentence(source)
    if pick < 0.45:
        words = (*ANIMALS, *OBJECTS, *ADJECTIVES, *TOWNS)
        return " ".join(source.draw(lambda: tuple(rng.sample(words, rng.randint(2, 10)))))
    if pick < 0.6:
        return " ".join(made_up_word(source) for _ in range(rng.randint(1, 6)))
    if pick < 0.7:
        return " ".join(code(source) for _ in range(rng.randint(1, 3)))
    if pick < 0.78:
        return source.draw(
            lambda: "".join(
                rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHKMNPRSTUVWXYZ0123456789_-+=/.:#@")
                for _ in range(rng.randint(4, 14))
            )
        )
    if pick < 0.88:
        return source.draw(lambda: " ".join(str(rng.randint(0, 999)) for _ in range(rng.randint(2, 8))))
    return " ".join(sentence(source) for _ in range(rng.randint(2, 4)))
