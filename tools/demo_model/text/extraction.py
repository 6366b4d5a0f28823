"""Answering from a short passage in the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from ..split import Source, words
from .dialogue import Check, Exchange, ask
from .lexicon import COLOURS, FOODS, JOBS, OBJECTS, PLACES, WEEKDAYS, article, clock_time, people, town

_SAY = "[Do you know|Say|Find|I want to know|Give me]"


@dataclass(frozen=True)
class Attribute:
    """One property of a subject: its value, how the passage says it, how it is asked, how it is answered."""

    key: str
    value: str | int
    says: str
    asks: tuple[str, ...]
    asks_held_out: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Subject:
    """A person, product or event with its attributes; `kind` is what a question calls it."""

    kind: str
    name: str
    attributes: tuple[Attribute, ...]


def subjects(source: Source, count: int) -> list[Subject]:
    """`count` subjects of one kind with differing names."""
    kind = source.rng.choice((_person, _person, _product, _event))
    if kind is _person:
        names = people(source, count)
    elif kind is _product:
        names = source.rng.sample(OBJECTS, count)
    else:
        names = source.rng.sample(_EVENTS, count)
    return [kind(source, name) for name in names]


def told(
    source: Source, described: list[Subject], per_subject: int
) -> tuple[str, list[tuple[Subject, Attribute]]]:
    """A passage that says `per_subject` attributes of each subject, and which ones it says."""
    facts = [
        (subject, attribute)
        for subject in described
        for attribute in source.rng.sample(subject.attributes, min(per_subject, len(subject.attributes)))
    ]
    sentences = [source.fill(attribute.says) for _, attribute in facts]
    return " ".join(line[0].upper() + line[1:] for line in sentences), facts


PASSAGE_TRAIN = (
    "{p} {q}",
    "{p}\n{q}",
    "{p}\n\n{q}",
    "Text: {p}\nQuestion: {q}",
    "Read this: {p}\n{q}",
    "{q}\n{p}",
    "[Passage|Context]: {p}\n\n{q}",
    "{q} {p}",
    "[Text|Note|Story|Facts|Message]: {p} {q}",
    "[This|Here] is [what I know|a note|a message|what I read|my text]: {p} {q}",
    "[Look at|See|Consider|Take] this[ text|]. {p} {q}",
    "[Suppose|We know|I know|I heard|Note] that {p} {q}",
    "{p} [Now|So|Then|Well|Tell me], {q}",
    "{p} [Answer|My question|Question|Now answer]: {q}",
    "[From|With|By] the text below, answer: {q}\n\n{p}",
    "[Listen|Read]. {p}\n\n{q}",
)
PASSAGE_HELD_OUT = ("Here is a text. {p} {q}", "Use this text: {p}\n\n{q}", "Given that {p}\n{q}")


def make(source: Source) -> Exchange:
    """A passage of two to five sentences on one to three subjects, and a question on one of them."""
    count = source.rng.choice((1, 2, 2, 3))
    described = subjects(source, count)
    passage, facts = told(
        source, described, source.rng.choice((2, 3)) if count < 3 else source.rng.choice((1, 2))
    )
    _, attribute = source.rng.choice(facts)
    question = source.phrase(attribute.asks, attribute.asks_held_out)
    others = {str(fact.value) for _, fact in facts if fact.key == attribute.key} - {str(attribute.value)}
    text = source.phrase(PASSAGE_TRAIN, PASSAGE_HELD_OUT).replace("{q}", question).replace("{p}", passage)
    return ask(text, attribute.answer, Check("all", (str(attribute.value),), tuple(sorted(others))))


def _person(source: Source, name: str) -> Subject:
    age, city, job = source.rng.randint(5, 95), town(source), source.rng.choice(JOBS)
    colour, food = source.rng.choice(COLOURS), source.rng.choice(FOODS)
    return Subject(
        "person",
        name,
        (
            Attribute(
                "age",
                age,
                f"{name} is {age}[ years old|].",
                (
                    f"How old is {name}?",
                    f"What is {name}'s age?",
                    f"What age is {name}?",
                    f"{_SAY} [how old {name} is|{name}'s age|the age of {name}].",
                ),
                (f"Tell me how old {name} is.", f"Tell me {name}'s age."),
                f"{name} is {age} years old.",
            ),
            Attribute(
                "city",
                city,
                f"{name} [lives in|is from|comes from] {city}.",
                (
                    f"Where does {name} live?",
                    f"[What|Which] city [is {name} from|does {name} live in]?",
                    f"Where is {name} from?",
                    f"{_SAY} [where {name} lives|{name}'s city|the city of {name}].",
                ),
                (f"In which city does {name} live?", f"Tell me where {name} lives."),
                f"{name} lives in {city}.",
            ),
            Attribute(
                "job",
                job,
                f"{name} [is|works as] {article(job)}.",
                (
                    f"What is {name}'s job?",
                    f"What does {name} do[ for work|]?",
                    f"{_SAY} [what {name} does|{name}'s job|the job of {name}].",
                    f"What [job does {name} have|does {name} work as]?",
                ),
                (f"Tell me {name}'s job.", f"Which job does {name} have?"),
                f"{name} is {article(job)}.",
            ),
            Attribute(
                "colour",
                colour,
                f"{name}'s favourite colour is {colour}.",
                (
                    f"What is {name}'s favourite colour?",
                    f"[Which|What] colour does {name} like[ best|]?",
                    f"{_SAY} [which colour {name} likes|{name}'s favourite colour].",
                ),
                (f"Tell me {name}'s favourite colour.", f"Which is {name}'s favourite colour?"),
                f"{name}'s favourite colour is {colour}.",
            ),
            Attribute(
                "food",
                food,
                f"{name} [likes|loves] [to eat |]{food}.",
                (
                    f"What does {name} like[ to eat|]?",
                    f"What food does {name} [like|love]?",
                    f"{_SAY} [what {name} likes|{name}'s favourite food].",
                    f"What is {name}'s favourite food?",
                ),
                (f"Tell me what {name} likes to eat.", f"Which food does {name} like?"),
                f"{name} likes {food}.",
            ),
        ),
    )


def _product(source: Source, name: str) -> Subject:
    price, colour, place, stock = (
        source.rng.randint(2, 199),
        source.rng.choice(COLOURS),
        source.rng.choice(PLACES),
        source.rng.randint(2, 90),
    )
    return Subject(
        "product",
        name,
        (
            Attribute(
                "price",
                price,
                f"the {name} costs {price} euros.",
                (
                    f"How much is the {name}?",
                    f"How much does the {name} cost?",
                    f"What is the price of the {name}?",
                    f"{_SAY} [what the {name} costs|the {name}'s price].",
                    f"What does the {name} cost?",
                ),
                (f"Tell me the price of the {name}.", f"Tell me how much the {name} costs."),
                f"The {name} costs {price} euros.",
            ),
            Attribute(
                "colour",
                colour,
                f"the {name} is {colour}.",
                (
                    f"What colour is the {name}?",
                    f"What is the colour of the {name}?",
                    f"Which colour does the {name} have?",
                ),
                (f"Tell me the colour of the {name}.", f"Which colour is the {name}?"),
                f"The {name} is {colour}.",
            ),
            Attribute(
                "place",
                place,
                f"the {name} is [kept |]in the {place}.",
                (
                    f"Where is the {name}?",
                    f"In which place is the {name}?",
                    f"Where can I find the {name}?",
                    f"{_SAY} [where the {name} is|the place of the {name}].",
                ),
                (f"Tell me where the {name} is.", f"Where do they keep the {name}?"),
                f"The {name} is in the {place}.",
            ),
            Attribute(
                "stock",
                stock,
                f"there are {stock} pieces of the {name}[ left|].",
                (
                    f"How many pieces of the {name} are [there|left]?",
                    f"How many pieces of the {name} do we have?",
                ),
                (f"Tell me how many pieces of the {name} there are.",),
                f"There are {stock} pieces of the {name}.",
            ),
        ),
    )


_EVENTS = words(
    "concert wedding meeting lecture exam party match parade picnic race play workshop trip festival "
    "dinner interview fair show game tour"
)


def _event(source: Source, name: str) -> Subject:
    day, time, place, guests = (
        source.rng.choice(WEEKDAYS),
        clock_time(source),
        source.rng.choice(PLACES),
        source.rng.randint(3, 300),
    )
    return Subject(
        "event",
        name,
        (
            Attribute(
                "day",
                day,
                f"the {name} is on {day}.",
                (
                    f"When is the {name}?",
                    f"[What|Which] day is the {name}[ on|]?",
                    f"On [what|which] day is the {name}?",
                ),
                (f"Tell me the day of the {name}.",),
                f"The {name} is on {day}.",
            ),
            Attribute(
                "time",
                time,
                f"the {name} [starts|begins] at {time}.",
                (f"What time is the {name}?", f"[When|At what time] does the {name} [start|begin]?"),
                (f"Tell me when the {name} starts.", f"Tell me at what time the {name} begins."),
                f"The {name} starts at {time}.",
            ),
            Attribute(
                "place",
                place,
                f"the {name} [is|takes place] in the {place}.",
                (
                    f"Where is the {name}?",
                    f"Where does the {name} take place?",
                    f"{_SAY} [where the {name} is|where to go for the {name}].",
                    f"In which place is the {name}?",
                ),
                (f"Tell me where the {name} takes place.", f"Tell me the place of the {name}."),
                f"The {name} is in the {place}.",
            ),
            Attribute(
                "guests",
                guests,
                f"{guests} people [come to|will be at] the {name}.",
                (f"How many people [come to|will be at] the {name}?", f"How many guests has the {name}?"),
                (f"Tell me how many people come to the {name}.",),
                f"{guests} people come to the {name}.",
            ),
        ),
    )
