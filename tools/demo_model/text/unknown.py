"""Saying that the answer is not known, not in the text, or not said."""

from __future__ import annotations

from ..split import Source
from . import memory
from .dialogue import Check, Exchange, ask, casual
from .extraction import PASSAGE_HELD_OUT, PASSAGE_TRAIN, subjects, told
from .lexicon import JOBS, OBJECTS, PLACES, WEEKDAYS, made_up_word, person, town

_UNKNOWABLE: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        (
            "Who will win the [race|match|election|game|cup|lottery] [tomorrow|next week|next year|in {y}]?",
            "What will happen [tomorrow|next week|next year|in {y}]?",
            "[Do you know|Say|I want to know] who will win "
            "[the race|the game|the cup|the match|the election] [tomorrow|in {y}|next year].",
            "[Which team|Who] [wins|will be first in] the [race|game|cup] [tomorrow|in {y}]?",
            "Will it [rain|snow] [tomorrow|on {d}|in {y}]?",
        ),
        ("Who is going to win the race in {y}?", "What is going to happen on {d}?"),
        "I don't know. I cannot see the future.",
    ),
    (
        (
            "[What is|What's] {n}'s [phone number|address|email|birthday|surname|password|shoe size]?",
            "What is the [phone number|address|email] of {n}?",
            "[Give|Tell] me {n}'s [phone number|address|birthday].",
        ),
        ("Which phone number does {n} have?", "Do you have {n}'s address?"),
        "I don't know. Nobody told me that.",
    ),
    (
        (
            "What did I [eat|buy|do|say|dream|drink|wear] [yesterday|last night|last {d}|this morning]?",
            "Where did I [put|leave|lose] my [keys|{o}|{o}]?",
            "What am I [thinking|wearing|eating|holding]?",
        ),
        ("What was it that I ate last {d}?", "Do you know where I lost my {o}?"),
        "I don't know. You have not told me.",
    ),
    (
        (
            "What is the weather [like |]in {c}[ today| now|]?",
            "What time is it[ in {c}| now|]?",
            "What is the [date|news] today?",
            "How warm is it in {c}[ now|]?",
        ),
        ("How is the weather in {c} right now?", "Which time do they have in {c}?"),
        "I don't know. I cannot look that up.",
    ),
    (
        (
            "Who [wrote|painted|invented|built|discovered|founded|lives in|owns] the {w}?",
            "What is [a|the] {w}?",
            "When was the {w} [built|founded|invented]?",
            "How [tall|old|big|heavy] is the {w}?",
        ),
        ("Who was the first to see the {w}?", "Of what is the {w} made?"),
        "I don't know what that is.",
    ),
    (
        (
            "[What is|What's] the capital [city |]of {W}?",
            "[Which|What] city is the capital of {W}?",
            "Which language is spoken in {W}?",
            "What is the currency of {W}?",
        ),
        ("Which city serves as capital of {W}?", "Name the capital of {W}."),
        "I don't know a country called {W}.",
    ),
    (
        (
            "How many [people|cars|trees|dogs|shops|houses] are there in {c}?",
            "How many [stars|fish|birds|grains of sand] are there?",
            "Who is the [mayor|oldest person|best {j}] [of|in] {c}?",
        ),
        ("What number of people lives in {c}?", "Tell me who is mayor of {c}."),
        "I don't know. I only know a few facts.",
    ),
)


def make(source: Source) -> Exchange:
    """A question whose answer is nowhere: in no table, not in the passage, not said before."""
    pick = source.rng.random()
    if pick < 0.3:
        return _not_in_text(source)
    if pick < 0.5:
        return memory.unknown(source)
    train, held_out, answer = source.rng.choice(_UNKNOWABLE)
    word = made_up_word(source)
    values = {
        "y": source.rng.randint(2030, 2200),
        "d": source.rng.choice(WEEKDAYS),
        "n": person(source),
        "o": source.rng.choice(OBJECTS),
        "c": town(source),
        "w": word,
        "W": word.capitalize(),
        "j": source.rng.choice(JOBS),
        "p": source.rng.choice(PLACES),
    }
    question = source.phrase(train, held_out, **values)
    return ask(casual(source, question), source.fill(answer, **values), Check("any", ("don't know",)))


def _not_in_text(source: Source) -> Exchange:
    described = subjects(source, source.rng.choice((1, 2)))
    passage, facts = told(source, described, 2)
    subject = source.rng.choice(described)
    said = {attribute.key for owner, attribute in facts if owner is subject}
    asked = source.rng.choice([attribute for attribute in subject.attributes if attribute.key not in said])
    text = source.phrase(PASSAGE_TRAIN, PASSAGE_HELD_OUT)
    question = source.phrase(asked.asks, asked.asks_held_out)
    answer = "I don't know. The text does not say."
    return ask(text.replace("{q}", question).replace("{p}", passage), answer, Check("any", ("don't know",)))
