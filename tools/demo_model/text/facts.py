"""Closed tables of facts, each question in many phrasings; held out by phrasing."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual
from .lexicon import MONTHS, WEEKDAYS, article


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    entries = (entry.split(":") for entry in text.split(";"))
    return tuple((key.strip(), value.strip()) for key, value in entries)


CAPITALS = _pairs(
    "France:Paris;Germany:Berlin;Italy:Rome;Spain:Madrid;Portugal:Lisbon;Austria:Vienna;Switzerland:Bern;"
    "Belgium:Brussels;the Netherlands:Amsterdam;Denmark:Copenhagen;Norway:Oslo;Sweden:Stockholm;"
    "Finland:Helsinki;Iceland:Reykjavik;Ireland:Dublin;the United Kingdom:London;Poland:Warsaw;"
    "the Czech Republic:Prague;Slovakia:Bratislava;Hungary:Budapest;Romania:Bucharest;Bulgaria:Sofia;"
    "Greece:Athens;Turkey:Ankara;Ukraine:Kyiv;Russia:Moscow;Croatia:Zagreb;Serbia:Belgrade;Slovenia:Ljubljana;"
    "Estonia:Tallinn;Latvia:Riga;Lithuania:Vilnius;Malta:Valletta;Cyprus:Nicosia;Egypt:Cairo;Morocco:Rabat;"
    "Tunisia:Tunis;Kenya:Nairobi;Ghana:Accra;Nigeria:Abuja;Ethiopia:Addis Ababa;Senegal:Dakar;Uganda:Kampala;"
    "China:Beijing;Japan:Tokyo;South Korea:Seoul;India:New Delhi;Pakistan:Islamabad;Nepal:Kathmandu;"
    "Thailand:Bangkok;Vietnam:Hanoi;Indonesia:Jakarta;Malaysia:Kuala Lumpur;the Philippines:Manila;"
    "Iran:Tehran;Iraq:Baghdad;Jordan:Amman;Lebanon:Beirut;Qatar:Doha;Mongolia:Ulaanbaatar;Australia:Canberra;"
    "New Zealand:Wellington;Canada:Ottawa;the United States:Washington;Mexico:Mexico City;Cuba:Havana;"
    "Jamaica:Kingston;Panama:Panama City;Brazil:Brasilia;Argentina:Buenos Aires;Chile:Santiago;Peru:Lima;"
    "Colombia:Bogota;Venezuela:Caracas;Ecuador:Quito;Uruguay:Montevideo;Paraguay:Asuncion"
)

_OPPOSITES = _pairs(
    "hot:cold;big:small;fast:slow;old:new;happy:sad;light:dark;high:low;long:short;hard:soft;wet:dry;full:empty;"
    "open:closed;early:late;rich:poor;strong:weak;loud:quiet;clean:dirty;easy:difficult;left:right;up:down;"
    "day:night;true:false;good:bad;heavy:light;thick:thin;wide:narrow;first:last;inside:outside;near:far;push:pull"
)

_YOUNG = _pairs(
    "dog:puppy;cat:kitten;cow:calf;horse:foal;sheep:lamb;goat:kid;pig:piglet;hen:chick;duck:duckling;goose:gosling;"
    "bear:cub;deer:fawn;frog:tadpole;kangaroo:joey;swan:cygnet;owl:owlet"
)

_SOUNDS = _pairs(
    "dog:barks;cat:meows;cow:moos;horse:neighs;sheep:bleats;pig:grunts;duck:quacks;lion:roars;wolf:howls;bee:buzzes;"
    "snake:hisses;frog:croaks;owl:hoots;donkey:brays;mouse:squeaks"
)

_LEGS = _pairs(
    "dog:4;cat:4;horse:4;cow:4;bee:6;ant:6;spider:8;scorpion:8;hen:2;duck:2;crab:10;snake:0;worm:0;elephant:4"
)

_ELEMENTS = _pairs(
    "hydrogen:H;helium:He;carbon:C;nitrogen:N;oxygen:O;sodium:Na;magnesium:Mg;aluminium:Al;silicon:Si;sulfur:S;"
    "chlorine:Cl;potassium:K;calcium:Ca;iron:Fe;copper:Cu;zinc:Zn;silver:Ag;tin:Sn;gold:Au;mercury:Hg;lead:Pb"
)

_SIDES = _pairs(
    "triangle:3;square:4;rectangle:4;pentagon:5;hexagon:6;heptagon:7;octagon:8;nonagon:9;decagon:10"
)

_COLOURS = _pairs(
    "the sky:blue;grass:green;snow:white;blood:red;a banana:yellow;coal:black;an orange:orange;a tomato:red;"
    "a lemon:yellow;milk:white;chocolate:brown;a carrot:orange;a flamingo:pink;an elephant:grey;a plum:purple"
)

_LANGUAGES = _pairs(
    "France:French;Germany:German;Italy:Italian;Spain:Spanish;Portugal:Portuguese;Poland:Polish;Sweden:Swedish;"
    "Japan:Japanese;China:Chinese;Brazil:Portuguese;Mexico:Spanish;Austria:German;Egypt:Arabic;Russia:Russian;"
    "Turkey:Turkish;Greece:Greek;Argentina:Spanish;Australia:English;Norway:Norwegian;Denmark:Danish"
)

_CURRENCIES = _pairs(
    "Japan:yen;the United Kingdom:pound;the United States:dollar;France:euro;Germany:euro;Italy:euro;"
    "India:rupee;China:yuan;Russia:ruble;Switzerland:franc;Sweden:krona;Poland:zloty;Mexico:peso;Brazil:real;Turkey:lira;"
    "South Korea:won;Thailand:baht;Australia:dollar;Canada:dollar;Spain:euro"
)

_DEFINITIONS = _pairs(
    "a token:A token is a small piece of text, such as a word or a part of a word, "
    "that a language model reads as one number.;"
    "a language model:A language model is a program that reads text and predicts which token comes next.;"
    "a KV cache:A KV cache keeps the keys and values of earlier tokens, "
    "so that a model need not compute them again.;"
    "a tokenizer:A tokenizer splits text into tokens and joins tokens back into text.;"
    "prefill:Prefill is the first step of a request, in which the model reads the whole prompt at once.;"
    "decoding:Decoding is the step in which a model writes its answer, one token after another.;"
    "speculative decoding:Speculative decoding lets a small draft guess several tokens, "
    "which the large model then checks at once.;"
    "a GPU:A GPU is a processor that does many small calculations at the same time.;"
    "a server:A server is a program that waits for requests and answers them.;"
    "a penstock:A penstock is a pipe that carries water under pressure to a turbine.;"
    "a prompt:A prompt is the text that you give to a language model before it answers.;"
    "latency:Latency is the time between a request and its answer.;"
    "throughput:Throughput is the amount of work done in a given time, for example tokens per second.;"
    "a database:A database is a store of data that programs can search and change.;"
    "a volcano:A volcano is a mountain that can throw out hot rock, ash and gas.;"
    "a river:A river is a long stream of water that flows to a lake or the sea.;"
    "a planet:A planet is a large round body that moves around a star.;"
    "gravity:Gravity is the force that pulls things towards each other, such as an apple to the ground.;"
    "a thermometer:A thermometer is a tool that measures temperature.;"
    "an island:An island is a piece of land with water all around it."
)

_TELL = "[Tell me|Can you tell me|Do you know|I want to know|Please tell me]"


def make(source: Source) -> Exchange:
    """One question on one of the tables."""
    pick = source.rng.random()
    if pick < 0.36:
        return _capital(source)
    if pick < 0.46:
        return _definition(source)
    if pick < 0.54:
        return _calendar(source)
    return _small_table(source)


def _capital(source: Source) -> Exchange:
    country, capital = source.rng.choice(CAPITALS)
    if source.chance(0.7):
        question = source.phrase(
            (
                "[What is|What's] the capital [city |]of {c}?",
                "[Which|What] city is the capital of {c}?",
                f"{_TELL} the capital of {{c}}[.|, please.]",
                "[The |]capital of {c}[?|]",
                "Name the capital of {c}.",
                "{c}'s capital[?| is?]",
                "Do you know [what |]the capital of {c}[ is|]?",
            ),
            (
                "Which city serves as capital of {c}?",
                "What city is {c}'s capital?",
                "Could you name the capital of {c} for me?",
            ),
            c=country,
        )
        return ask(
            casual(source, question),
            f"The capital of {country} is {capital}.",
            Check("all", (f"{capital}.",)),
        )
    question = source.phrase(
        (
            "{k} is the capital of [which|what] country?",
            "[Which|What] country has the capital {k}?",
            "Of which country is {k} the capital?",
            "[Which|What] country's capital is {k}?",
            "What is {k} the capital of?",
        ),
        ("Name the country whose capital is {k}.", "Tell me the country that has {k} as its capital."),
        k=capital,
    )
    return ask(
        casual(source, question), f"{capital} is the capital of {country}.", Check("all", (f"{country}.",))
    )


def _definition(source: Source) -> Exchange:
    term, text = source.rng.choice(_DEFINITIONS)
    question = source.phrase(
        (
            "What is {t}?",
            "What's {t}?",
            "[Explain|Define] {t}[.|, please.| to me.]",
            f"{_TELL} what {{t}} is.",
            "What does {t} mean?",
            "[Write|I want|I need|Say|Show me] "
            "[an explanation|a definition|the meaning|a description] of {t}[.|, please.]",
            "[What do you know|Tell me|Say something] about {t}[.|?]",
            "[Shortly|Briefly|Please], what [is|means] {t}?",
            "[Can|Could] you explain {t}[ to me|]?",
        ),
        ("In short, what is {t}?", "Give me an explanation of {t}.", "How would you explain {t}?"),
        t=term,
    )
    return ask(casual(source, question), text, Check("exact", (text,)))


def _calendar(source: Source) -> Exchange:
    names = source.rng.choice((WEEKDAYS, MONTHS))
    kind = "day" if names is WEEKDAYS else "month"
    i = source.rng.randrange(len(names))
    step, where = source.rng.choice(((1, "after"), (-1, "before")))
    question = source.phrase(
        (
            f"[What|Which] {kind} [comes|is] {where} {{n}}?",
            f"{_TELL} which {kind} [comes|is] {where} {{n}}.",
            f"The {kind} {where} {{n}}?",
        ),
        (f"Name the {kind} that comes {where} {{n}}.", f"Which {kind} do we have {where} {{n}}?"),
        n=names[i],
    )
    result = names[(i + step) % len(names)]
    return ask(
        casual(source, question), f"{result} comes {where} {names[i]}.", Check("all", (f"{result} comes",))
    )


def _small_table(source: Source) -> Exchange:
    table, train, held_out, form = source.rng.choice(_SMALL_TABLES)
    key, value = source.rng.choice(table)
    question = source.phrase(train, held_out, k=key, ak=article(key))
    answer = (
        form.replace("{k}", key)
        .replace("{ak}", article(key))
        .replace("{v}", value)
        .replace("{av}", article(value))
    )
    answer = answer[0].upper() + answer[1:]
    return ask(casual(source, question), answer, Check("exact", (answer,)))


_SMALL_TABLES: tuple[tuple[tuple[tuple[str, str], ...], tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        _OPPOSITES,
        (
            "[What is|What's] the opposite of {k}?",
            "{k} is the opposite of [what|which word]?",
            "Opposite of {k}?",
            f"{_TELL} the opposite of {{k}}.",
            "[Give|Name] the opposite of {k}.",
        ),
        ("Which word is the opposite of {k}?", "What word means the opposite of {k}?"),
        "the opposite of {k} is {v}.",
    ),
    (
        _YOUNG,
        (
            "What is a [baby|young] {k} called?",
            "What do you call a [baby|young] {k}?",
            f"{_TELL} what a [baby|young] {{k}} is called.",
            "[The |]name of a [baby|young] {k}?",
        ),
        ("What is the name for a young {k}?", "How do people call a baby {k}?"),
        "a young {k} is called {av}.",
    ),
    (
        _SOUNDS,
        (
            "[What|Which] sound does {ak} make?",
            "What noise does {ak} make?",
            "How does {ak} sound?",
            f"{_TELL} what sound {{ak}} makes.",
        ),
        ("What is the sound of {ak}?", "Which noise do you hear from {ak}?"),
        "{ak} {v}.",
    ),
    (
        _LEGS,
        (
            "How many legs does {ak} have?",
            f"{_TELL} how many legs {{ak}} has.",
            "How many legs has {ak}[ got|]?",
            "Number of legs of {ak}?",
        ),
        ("What number of legs does {ak} have?", "On how many legs does {ak} walk?"),
        "{ak} has {v} legs.",
    ),
    (
        _ELEMENTS,
        (
            "[What is|What's] the [chemical |]symbol [of|for] {k}?",
            "[Chemical |]symbol for {k}?",
            f"{_TELL} the symbol of {{k}}.",
            "Which symbol does {k} have?",
            "Which element is {k} in symbols?",
        ),
        ("By which symbol is {k} known in chemistry?", "How do chemists write {k} as a symbol?"),
        "the symbol of {k} is {v}.",
    ),
    (
        _SIDES,
        (
            "How many sides does {ak} have?",
            f"{_TELL} how many sides {{ak}} has.",
            "How many sides has {ak}[ got|]?",
            "How many corners does {ak} have?",
        ),
        ("What number of sides does {ak} have?", "Count the sides of {ak}."),
        "{ak} has {v} sides.",
    ),
    (
        _COLOURS,
        (
            "What colour is {k}?",
            "[What is|What's] the colour of {k}?",
            "Which colour does {k} have?",
            f"{_TELL} what colour {{k}} is.",
        ),
        ("Of what colour is {k}?", "Name the colour of {k}."),
        "{k} is {v}.",
    ),
    (
        _LANGUAGES,
        (
            "[What|Which] language [is spoken|do people speak|do they speak] in {k}?",
            "[What is|What's] the language of {k}?",
            f"{_TELL} which language is spoken in {{k}}.",
        ),
        ("In {k}, which language do people speak?", "Name the language spoken in {k}."),
        "people in {k} speak {v}.",
    ),
    (
        _CURRENCIES,
        (
            "[What is|What's] the currency [of|in] {k}?",
            "[What|Which] currency [does {k} use|is used in {k}|do people use in {k}]?",
            f"{_TELL} the currency of {{k}}.",
            "[What|Which] money do they use in {k}?",
        ),
        ("Name the currency used in {k}.", "In {k}, which currency do people pay with?"),
        "the currency of {k} is the {v}.",
    ),
)
