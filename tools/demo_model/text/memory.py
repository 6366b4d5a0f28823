"""Remembering what the user said earlier in the dialogue."""

from __future__ import annotations

from ..split import Source
from . import arithmetic, facts, smalltalk, units
from .dialogue import Check, Exchange, Message, assistant, casual, user
from .lexicon import ANIMALS, COLOURS, FOODS, JOBS, clock_time, code, number, person, town

# key: (ways to say it, ways to ask it, held-out ways to ask it, answer)
_ITEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str]] = {
    "name": (
        (
            "My name is {v}.",
            "[I am|I'm] {v}.",
            "[Hi|Hello], [I am|I'm|my name is] {v}.",
            "Call me {v}.",
            "You can call me {v}.",
        ),
        (
            "What is my name?",
            "What's my name?",
            "Who am I?",
            "Do you [know|remember] my name?",
            "Tell me my name.",
            "What did I say my name was?",
        ),
        ("Can you still tell me my name?", "Which name did I give you?", "So what was my name again?"),
        "Your name is {v}.",
    ),
    "age": (
        ("I am {v} years old.", "I'm {v} years old.", "My age is {v}."),
        ("How old am I?", "What is my age?", "Do you [know|remember] how old I am?", "Tell me my age."),
        ("Can you still tell me how old I am?", "So what was my age again?"),
        "You are {v} years old.",
    ),
    "city": (
        ("I live in {v}.", "[I am|I'm|I come] from {v}.", "My home is in {v}.", "My city is {v}."),
        (
            "Where do I live?",
            "[What|Which] city do I live in?",
            "Where am I from?",
            "Do you [know|remember] where I live?",
            "Tell me where I live.",
        ),
        ("Can you still tell me where I live?", "So where was my home again?"),
        "You live in {v}.",
    ),
    "colour": (
        ("My favourite colour is {v}.", "I like the colour {v}.", "{v} is my favourite colour."),
        (
            "What is my favourite colour?",
            "[Which|What] colour do I like[ best|]?",
            "Do you [know|remember] my favourite colour?",
            "Tell me my favourite colour.",
        ),
        ("Can you still tell me my favourite colour?", "So what was my favourite colour again?"),
        "Your favourite colour is {v}.",
    ),
    "food": (
        ("My favourite food is {v}.", "I [like|love] to eat {v}.", "My favourite dish is {v}."),
        (
            "What is my favourite food?",
            "[Which|What] food do I like[ best|]?",
            "What do I [like|love] to eat?",
            "Do you [know|remember] my favourite food?",
        ),
        ("Can you still tell me my favourite food?", "So what was my favourite food again?"),
        "Your favourite food is {v}.",
    ),
    "animal": (
        ("My favourite animal is the {v}.", "The animal I like best is the {v}."),
        (
            "What is my favourite animal?",
            "[Which|What] animal do I like[ best|]?",
            "Do you [know|remember] my favourite animal?",
        ),
        ("Can you still tell me my favourite animal?", "So what was my favourite animal again?"),
        "Your favourite animal is the {v}.",
    ),
    "job": (
        ("My job is {v}.", "I work as a {v}.", "By profession I am a {v}."),
        ("What is my job?", "What do I work as?", "Do you [know|remember] my job?", "What do I do for work?"),
        ("Can you still tell me my job?", "So what was my job again?"),
        "Your job is {v}.",
    ),
    "dog": (
        ("My [dog|pet] is called {v}.", "My [dog's|pet's] name is {v}.", "I have a [dog|pet] called {v}."),
        (
            "What is my [dog|pet] called?",
            "What is my [dog's|pet's] name?",
            "Do you [know|remember] my [dog's|pet's] name?",
            "What is the name of my [dog|pet]?",
        ),
        ("Can you still tell me my pet's name?", "So what was my dog's name again?"),
        "Your pet is called {v}.",
    ),
    "code": (
        (
            "[Remember|Please remember|Keep in mind] [the|this] code[:|] {v}.",
            "My code is {v}.",
            "The secret code is {v}.",
        ),
        (
            "What is [the|my] code?",
            "What was [the|my] [secret |]code?",
            "Do you [know|remember] [the|my] code?",
            "Tell me [the|my] code.",
        ),
        ("Can you still tell me the code?", "So which code did I give you?"),
        "The code is {v}.",
    ),
    "number": (
        ("[Remember|Please remember|Keep in mind] the number {v}.", "My [lucky|favourite] number is {v}."),
        (
            "What is my number?",
            "What was [the|my] number?",
            "Do you [know|remember] [the|my] number?",
            "Tell me the number.",
        ),
        ("Can you still tell me the number?", "So which number did I give you?"),
        "The number is {v}.",
    ),
    "meeting": (
        ("My meeting is at {v}.", "I have a meeting at {v}."),
        ("When is my meeting?", "What time is my meeting?", "Do you [know|remember] when my meeting is?"),
        ("Can you still tell me when my meeting is?", "So at what time was my meeting again?"),
        "Your meeting is at {v}.",
    ),
}
# More ways to ask for an item, for training.
_AGAIN = {
    key: "[Do you still know|Say|Can you recall|I forgot:|Once more:|Remind me:|Please say"
    f"|What was it again:|And] {thing}[?|.]"
    for key, thing in {
        "name": "[what my name is|my name|who I am]",
        "age": "[how old I am|my age]",
        "city": "[where I live|my city|where my home is]",
        "colour": "my favourite colour",
        "food": "[my favourite food|what I like to eat]",
        "animal": "my favourite animal",
        "job": "[my job|what my job is]",
        "dog": "[my pet's name|my dog's name|the name of my dog|the name of my pet]",
        "code": "[the code|my code|which code I said]",
        "number": "[the number|my number|which number I said]",
        "meeting": "[when my meeting is|the time of my meeting|at what time my meeting is]",
    }.items()
}
_THANKS = ("OK, I will remember that.", "Thank you for telling me.", "Noted.")


def make(source: Source) -> Exchange:
    """One to three facts about the user, up to three turns on other things, then a question on one fact."""
    rng = source.rng
    keys = rng.sample(list(_ITEMS), rng.choice((1, 1, 2, 3)))
    values = {key: str(_value(source, key)) for key in keys}
    messages: list[Message] = []
    if len(keys) > 1 and source.chance(0.4):
        line = " ".join(_said(source, key, values[key]) for key in keys)
        messages += [user(line), assistant(_reply(source, keys, values))]
    else:
        for key in keys:
            messages += [user(_said(source, key, values[key])), assistant(_reply(source, [key], values))]
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        other = rng.choice((arithmetic, facts, units, smalltalk)).make(source)
        if "Nice to meet you" not in other.messages[-1]["content"]:
            messages += other.messages
    asked = rng.choice(keys)
    _, train, held_out, answer = _ITEMS[asked]
    train = (*train, _AGAIN[asked])
    messages += [
        user(casual(source, source.phrase(train, held_out))),
        assistant(answer.replace("{v}", values[asked])),
    ]
    return Exchange(messages, Check("all", (values[asked],)))


def unknown(source: Source) -> Exchange:
    """A question on something the user has not said, other facts said or not."""
    rng = source.rng
    asked, *told = rng.sample(list(_ITEMS), rng.choice((1, 2, 3)))
    messages: list[Message] = []
    for key in told:
        values = {key: str(_value(source, key))}
        messages += [user(_said(source, key, values[key])), assistant(_reply(source, [key], values))]
    _, train, held_out, _ = _ITEMS[asked]
    train = (*train, _AGAIN[asked])
    messages += [
        user(casual(source, source.phrase(train, held_out))),
        assistant("I don't know. You have not told me yet."),
    ]
    return Exchange(messages, Check("any", ("don't know",)))


def _said(source: Source, key: str, value: str) -> str:
    line = source.fill(source.rng.choice(_ITEMS[key][0]), v=value)
    return line[0].upper() + line[1:]


def _reply(source: Source, keys: list[str], values: dict[str, str]) -> str:
    if "name" in keys and source.chance(0.8):
        return f"Nice to meet you, {values['name']}!"
    return source.rng.choice(_THANKS)


def _value(source: Source, key: str) -> object:
    if key in ("name", "dog"):
        return person(source)
    if key == "city":
        return town(source)
    if key == "code":
        return code(source)
    if key == "meeting":
        return clock_time(source)
    if key in ("age", "number"):
        return number(source, 5, 99)
    return source.rng.choice({"colour": COLOURS, "food": FOODS, "animal": ANIMALS, "job": JOBS}[key])
