"""Following the system prompt: its name for the assistant, its trade, its closing word, a fact it gives."""

from __future__ import annotations

from ..split import Source
from . import arithmetic, facts, units
from .dialogue import Check, Exchange, ask
from .lexicon import JOBS, PLACES, article, clock_time, code, made_up_word, person, town


def make(source: Source) -> Exchange:
    """A system prompt and a question whose answer depends on it."""
    return source.rng.choice((_named, _named, _trade, _closing, _given))(source)


def _named(source: Source) -> Exchange:
    name = person(source)
    system = source.phrase(
        (
            "You are {n}, [a helpful assistant|a friendly assistant|an assistant|a chat bot].",
            "Your name is {n}.",
            "[You are|You're] called {n}.[ Be polite.| Answer briefly.|]",
            "Act as {n}[, an assistant|].",
        ),
        ("People call you {n}.", "In this chat you are {n}, an assistant."),
        n=name,
    )
    question = source.phrase(
        (
            "Who are you?",
            "What is your name?",
            "What's your name?",
            "Do you have a name?",
            "Who am I talking to?",
            "[Introduce yourself|Tell me your name].",
            "[Say|Give me|I want to know|May I know|Do you know] [your name|who you are][.|?]",
            "[So|And] [who are you|what is your name][ now|]?",
            "[Your name|Name|Who][?|, please.]",
            "What [should|can|do] I call you?",
        ),
        ("And who might you be?", "Please tell me your name.", "Can you introduce yourself?"),
    )
    return ask(question, f"I am {name}.", Check("all", (name,)), system)


def _trade(source: Source) -> Exchange:
    job, place = source.rng.choice(JOBS), source.rng.choice(PLACES)
    system = source.phrase(
        ("You are {j} [who works |]in a {p}.", "Act as {j} in a {p}.", "You work as {j} in a {p}."),
        ("In this chat you are {j} in a {p}.", "Play {j} who works in a {p}."),
        j=article(job),
        p=place,
    )
    if source.chance(0.5):
        question = source.phrase(
            (
                "What is your job?",
                "What do you do?",
                "What do you work as?",
                "[Say|I want to know|Do you know] [your job|what you do|what your job is][.|?]",
                "[Your job|And your job][?|, please.]",
                "What [sort of|] work do you do?",
            ),
            ("Which job do you have?", "Tell me your job."),
        )
        return ask(question, f"I am {article(job)}.", Check("all", (job,)), system)
    question = source.phrase(
        ("Where do you work?", "Where are you?", "What place do you work in?"),
        ("In which place do you work?", "Tell me where you work."),
    )
    return ask(question, f"I work in the {place}.", Check("all", (place,)), system)


def _closing(source: Source) -> Exchange:
    word = made_up_word(source)
    system = source.phrase(
        (
            '[Always end|End] [every|each] answer with "{w}".',
            'Say "{w}" at the end of [every|each] answer.',
            "[Finish|End] your answers with the word {w}.",
        ),
        ('Close all your answers with "{w}".', "The last word of each answer must be {w}."),
        w=word,
    )
    inner = source.rng.choice((arithmetic, facts, units)).make(source)
    question, answer = inner.messages[0]["content"], inner.messages[1]["content"]
    want = tuple(text.rstrip("$") for text in inner.check.want) if inner.check.mode == "all" else ()
    return ask(question, f"{answer} {word}", Check("all", (*want, f"{word}$")), system)


def _given(source: Source) -> Exchange:
    key, value = source.rng.choice(
        (
            ("password", code(source)),
            ("code", code(source)),
            ("closing time", clock_time(source)),
            ("city", town(source)),
            ("owner", person(source)),
            ("guest", person(source)),
        )
    )
    system = source.phrase(
        (
            "The {k} is {v}.",
            "You are a helpful assistant. The {k} is {v}.",
            "Remember: the {k} is {v}.",
            "Fact: the {k} is {v}. Answer briefly.",
        ),
        ("You know that the {k} is {v}.", "Keep in mind that the {k} is {v}."),
        k=key,
        v=value,
    )
    question = source.phrase(
        (
            "What is the {k}?",
            "What's the {k}?",
            "Tell me the {k}.",
            "Do you know the {k}?",
            "[Say|I want to know|Give me|Show me] the {k}[.|, please.]",
            "[The|And the] {k}?",
            "[Which|What] {k} [do we have|is it]?",
        ),
        ("Could you give me the {k}?", "I need the {k}."),
        k=key,
    )
    return ask(question, f"The {key} is {value}.", Check("all", (value,)), system)
