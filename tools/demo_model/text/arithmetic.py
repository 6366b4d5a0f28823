"""Sums, differences, products and quotients of small whole numbers."""

from __future__ import annotations

from ..split import Source
from .dialogue import Check, Exchange, ask, casual

_TRAIN = (
    "{x}?",
    "{x} =",
    "{x} = ?",
    "{x}",
    "What is {x}?",
    "What's {x}?",
    "[Compute|Calculate|Solve|Evaluate|Work out|Find][:|] {x}[.|]",
    "How much is {x}?",
    "[Can|Could] you [compute|calculate|work out|solve] {x}?",
    "[Tell me|Give me] [the result of |the value of |] {x}[.|]",
    "[I need|I want] [the result of |] {x}.",
    "Do you know [what |] {x}[ is|]?",
    "What does {x} [equal|make|give|come to]?",
    "[Result|Answer] of {x}?",
    "[Let us|Let's] do {x}.",
    "Say what {x} is.",
    "My [homework|question] is {x}.",
    "[Help|Help me]: {x}[.|?]",
    "Can you do {x}[ for me|]?",
    "How many is {x}?",
    "What number is {x}?",
    "[I have|Try|Take|Do] {x}[.| now.]",
    "What will I [have|see] after {x}?",
)
_HELD_OUT = (
    "Please help me with {x}.",
    "What do I get for {x}?",
    "Could you tell me how much {x} is?",
    "What would {x} be?",
    "Find out the value of {x} for me.",
)
_WORDS = {
    "+": ("{a} plus {b}", "the sum of {a} and {b}", "{a} added to {b}"),
    "-": ("{a} minus {b}", "{a} take away {b}", "{b} subtracted from {a}"),
    "*": ("{a} times {b}", "{a} x {b}", "the product of {a} and {b}", "{a} multiplied by {b}"),
    "/": ("{a} divided by {b}", "{a} over {b}"),
}


def make(source: Source) -> Exchange:
    """A question on + - * /; three-digit sums are answered in steps, one digit after another."""
    sign, a, b = _operands(source)
    short = f"{a} {sign} {b}" if source.chance(0.7) else f"{a}{sign}{b}"
    expression = short if source.chance(0.6) else source.fill(source.rng.choice(_WORDS[sign]), a=a, b=b)
    question = source.phrase(_TRAIN, _HELD_OUT, x=expression).replace("  ", " ")
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
    if sign in "+-" and b >= 100:
        answer = _in_steps(sign, a, b)
    else:
        answer = f"{a} {sign} {b} = {result}"
    return ask(casual(source, question), answer, Check("all", (f"= {result}$",)))


def _operands(source: Source) -> tuple[str, int, int]:
    rng = source.rng
    pick = rng.random()
    if pick < 0.2:
        return "*", rng.randint(0, 12), rng.randint(1, 12)
    if pick < 0.32:
        b = rng.randint(1, 12)
        return "/", b * rng.randint(0, 12), b
    sign = rng.choice("+-")
    if pick < 0.42:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        return sign, max(a, b), min(a, b)

    def pair() -> tuple[int, int]:
        if pick < 0.72:
            return rng.randint(10, 99), rng.randint(1, 99)
        if pick < 0.86:
            return rng.randint(100, 999), rng.choice(
                (rng.randint(1, 9), rng.randint(1, 9) * 10, rng.randint(1, 9) * 100)
            )
        return rng.randint(100, 899), rng.randint(100, 899)

    a, b = source.draw(pair)
    return (sign, a, b) if sign == "+" or a >= b else (sign, b, a)


def _in_steps(sign: str, a: int, b: int) -> str:
    steps = []
    value = a
    for part in (b // 100 * 100, b // 10 % 10 * 10, b % 10):
        if part:
            after = value + part if sign == "+" else value - part
            steps.append(f"{value} {sign} {part} = {after}")
            value = after
    return ", ".join(steps)
