"""Words that the generated questions are filled with."""

from __future__ import annotations

from ..split import Source, words

FIRST_NAMES = words(
    "Ada Adam Agnes Ahmed Aiko Alan Alba Alice Alma Amir Amy Ana Andrei Anna Anton Aria Arjun Astrid Ben "
    "Bella Bruno Carla Carlos Celia Chen Clara Daniel Daria David Diana Diego Dora Edith Elena Eli Elsa "
    "Emil Emma Erik Esther Eva Farid Fatima Felix Finn Fiona Flora Frank Freya George Gina Grace Greta "
    "Hana Hassan Hector Helen Henry Hugo Ida Igor Ines Irene Isaac Ivan Ivy Jack Jada James Jane Jonas "
    "Jorge Julia Kai Karim Kate Kenji Klara Lars Laura Layla Leo Lena Liam Lily Linda Lucas Lucy Luna "
    "Marco Maria Mark Martin Maya Mei Mia Mila Mona Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Paul "
    "Pavel Pedro Peter Priya Rafael Rana Ravi Rita Robert Rosa Ruth Sam Sami Sara Simon Sofia Stella Tara "
    "Tom Theo Tina Umar Uma Vera Victor Viola Walter Wanda Yara Yuki Yusuf Zara Zoe"
)

TOWNS = words(
    "Aarhus Agra Antwerp Austin Baku Basel Bergen Bilbao Bologna Boston Bristol Bruges Chicago Cologne "
    "Cordoba Cork Cracow Dallas Delft Denver Dresden Dubai Durban Essen Exeter Fez Florence Geneva Genoa "
    "Ghent Glasgow Graz Haifa Hamburg Houston Innsbruck Istanbul Izmir Kobe Kyoto Lagos Leeds Leiden Lille "
    "Linz Liverpool Lyon Malmo Manchester Marseille Memphis Miami Milan Montreal Mumbai Munich Nagoya "
    "Nantes Naples Nice Odense Osaka Oxford Perth Porto Quebec Rotterdam Salzburg Seattle Seville Shanghai "
    "Sydney Toledo Toronto Turin Utrecht Valencia Venice Verona York Zurich"
)

JOBS = words(
    "actor artist baker barber carpenter chef dentist doctor driver editor engineer farmer firefighter "
    "fisher florist gardener guide judge lawyer librarian mechanic nurse painter pharmacist photographer "
    "pilot plumber poet potter sailor scientist singer tailor teacher vet waiter weaver writer"
)

ANIMALS = words(
    "ant badger bat bear bee cat camel cow crab crow deer dog donkey duck eagle elephant falcon ferret fox "
    "frog giraffe goat goose hare hedgehog horse koala lion lizard mole monkey moose mouse otter owl panda "
    "parrot penguin pig pony rabbit rat raven seal shark sheep snail snake sparrow spider squirrel swan "
    "tiger turtle whale wolf zebra"
)

FOODS = words(
    "apple apricot avocado banana bean beetroot bread broccoli butter cabbage cake carrot cheese cherry "
    "chocolate coconut cookie corn cucumber egg fig garlic grape honey jam kiwi lemon lentil lettuce lime "
    "mango melon mushroom noodle nut olive onion orange pancake papaya pasta pea peach pear pepper pie "
    "pizza plum potato pumpkin quince radish raisin raspberry rice salad sandwich soup spinach strawberry "
    "tomato turnip waffle yogurt"
)

COLOURS = words("red blue green yellow purple orange black white brown pink grey silver golden violet")

OBJECTS = words(
    "backpack ball basket bell bicycle blanket book boot bottle bowl box brush bucket camera candle cap "
    "card chair clock coat coin cup desk doll door drum fan flag flute fork guitar hammer hat helmet "
    "jacket jar kettle key kite knife ladder lamp map mirror mug needle notebook paddle pan pen pencil "
    "phone piano pillow plate pot puzzle radio ring robot rope scarf shelf shirt shoe sled sofa spoon "
    "stool suitcase table telescope tent toy umbrella vase violin wallet watch wheel whistle window"
)

ADJECTIVES = words(
    "brave bright busy calm clever cold cosy curious dusty eager empty fancy fast gentle happy heavy "
    "hungry kind large lazy little lonely loud lucky merry muddy new noisy old polite proud quick quiet "
    "rusty shiny shy silent silly sleepy slow small soft strong tall tiny tired warm wild wise young"
)

PLACES = words(
    "attic bakery beach bridge castle cave cellar church corner desert farm field forest garden garage "
    "harbour hill house island kitchen lake library market meadow mill mountain museum office palace park "
    "pond river road school ship shop square stable station street theatre tower tunnel valley village "
    "yard zoo"
)

PAST_VERBS = words(
    "admired borrowed bought broke built carried cleaned copied counted drew dropped followed found fixed "
    "forgot heard hid kept left liked lost loved made met moved opened packed painted planted pulled "
    "pushed saw sold stole took visited wanted washed watched"
)

WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

MONTHS = words("January February March April May June July August September October November December")

_ONSETS = words("b c d f g h j k l m n p r s t v w z br dr fl gr kl pl pr sh sk st th tr")
_VOWELS = words("a e i o u a e i o ai ea io")
_CODAS = ("", "", "", "", "l", "n", "r", "s", "t", "m", "x", "k")


def made_up_word(source: Source) -> str:
    """A pronounceable word of two or three syllables that no table holds."""

    def make() -> str:
        rng = source.rng
        syllables = rng.choice((2, 2, 2, 3))
        return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(
            _CODAS
        )

    return source.draw(make)


def person(source: Source) -> str:
    """A first name, made up in three of ten cases."""
    return made_up_word(source).capitalize() if source.chance(0.3) else source.one(FIRST_NAMES)


def people(source: Source, count: int) -> list[str]:
    """`count` distinct first names."""
    names: list[str] = []
    while len(names) < count:
        name = person(source)
        if name not in names:
            names.append(name)
    return names


def town(source: Source) -> str:
    """A town, made up in three of ten cases."""
    return made_up_word(source).capitalize() if source.chance(0.3) else source.one(TOWNS)


def number(source: Source, low: int, high: int) -> int:
    """A whole number of low..high; not split, since it stands beside values that are."""
    return source.rng.randint(low, high)


def clock_time(source: Source) -> str:
    """A time of day as HH:MM, minutes in fives."""
    return source.draw(lambda: f"{source.rng.randint(0, 23):02d}:{source.rng.randrange(0, 60, 5):02d}")


def code(source: Source) -> str:
    """A code of two letters and four digits, for example KT-4821."""
    rng = source.rng
    letters = "ABCDEFGHJKLMNPRSTUVWXYZ"
    return source.draw(lambda: f"{rng.choice(letters)}{rng.choice(letters)}-{rng.randint(1000, 9999)}")


def article(noun: str) -> str:
    """`noun` with `a` or `an`."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def sentence(source: Source) -> str:
    """A plain sentence of six to fourteen words, capital letter and full stop included."""
    rng = source.rng
    made = source.draw(
        lambda: source.fill(
            rng.choice(_SENTENCES),
            a=rng.choice(ADJECTIVES),
            b=rng.choice(ADJECTIVES),
            n=rng.choice(ANIMALS),
            o=rng.choice(OBJECTS),
            p=rng.choice(PLACES),
            q=rng.choice(PLACES),
            v=rng.choice(PAST_VERBS),
            w=rng.choice(PAST_VERBS),
            c=rng.choice(COLOURS),
            f=rng.choice(FOODS),
            d=rng.choice(WEEKDAYS),
            m=rng.choice(FIRST_NAMES),
            k=rng.randint(2, 99),
        )
    )
    return made[0].upper() + made[1:]


_SENTENCES = (
    "the {a} {n} {v} the {c} {o} near the {p}.",
    "on {d} {m} {v} {k} {c} [boxes|cards|coins|books|bottles] at the {p}.",
    "{m} {v} a {c} {o} and {w} the {a} {n}.",
    "there is a {a} {n} behind the {p}, and it likes {f}.",
    "my {a} friend {m} {v} the {o} in the {b} {p}.",
    "we saw {k} {a} [birds|dogs|ships|clouds|trees] from the {p} to the {q}.",
    "every {d} the {a} {n} walks from the {p} to the {q}.",
    "nobody {v} the {c} {o} that {m} left in the {p}.",
    "the {o} is {c}, the {f} is {a}, and the {p} is {b}.",
    "{m} and the {n} {v} the {f} before {d}.",
)
